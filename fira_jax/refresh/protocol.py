"""The interface of refresh rules."""

from __future__ import annotations

import abc
from typing import Any

import jax
import jax.numpy as jnp

from fira_jax.matrix_view import MatrixView
from fira_jax.norms import root
from fira_jax.subspace import Subspace


class Rule(abc.ABC):
    """When each basis is replaced, judged by the step and by what the rule remembers.

    A frozen dataclass whose methods work on all matrices of one parameter at once, with leading
    batch axes. Only :meth:`due` must be there. A step whose gradient is zero or not finite teaches
    nothing: the memory stays as it was, and a matrix that was due stays due.

    Attributes:
      judges: whether it judges the basis in use, which must then be stored.

    Example:
      >>> import fira_jax
      >>> isinstance(fira_jax.refresh.Lazy(), fira_jax.refresh.Rule)
      True
    """

    judges: bool = True

    def init(self, view: MatrixView, dtype: jax.typing.DTypeLike) -> Any:  # noqa: ARG002
        """The memory at the start, a pytree of arrays ``[*batch, ...]``; nothing by default.

        Args:
          view: how the parameter is read as matrices.
          dtype: the parameter's.
        """
        return ()

    @property
    def remembers(self) -> bool:
        """Whether there is a memory: whether :meth:`init` was written."""
        return type(self).init is not Rule.init

    @abc.abstractmethod
    def due(
        self, memory: Any, count: jax.Array, gap: int, index: jax.typing.ArrayLike, total: int
    ) -> jax.Array:
        """Which bases are to be replaced before this step, bool ``[*batch]``.

        Args:
          memory: what :meth:`init` or :meth:`update` returned.
          count: steps taken before this one.
          gap: ``update_proj_gap``; each rule says what it means to it.
          index: which of the model's matrices these are, int ``[*batch]``.
          total: how many matrices the model has.
        """

    def update(
        self,
        memory: Any,
        node: Subspace,  # noqa: ARG002
        old: Any,  # noqa: ARG002
        refreshed: jax.Array,  # noqa: ARG002
        gap: int,  # noqa: ARG002
    ) -> Any:
        """The memory after a step.

        Args:
          memory: what it was.
          node: the gradient in its subspace, with the basis of this step.
          old: the basis of the step before, like ``node.basis``.
          refreshed: whether the basis was replaced at this step, bool ``[*batch]``.
          gap: ``update_proj_gap``.
        """
        return memory


def matrix_norm(node: Subspace) -> jax.Array:
    r""":math:`\lVert R \rVert_F` of each matrix, ``[*batch]``."""
    return root(jnp.sum(node.raw_energy, axis=(-2, -1)))

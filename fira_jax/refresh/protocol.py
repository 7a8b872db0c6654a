"""The interface of refresh rules that need to see what happens to a matrix."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from fira_jax.matrix_view import MatrixView
from fira_jax.subspace import Subspace


@runtime_checkable
class Rule(Protocol):
    """When each basis is replaced, judged by its gradients and by the bases before.

    A frozen dataclass whose methods work on all matrices of one parameter at once, with leading
    batch axes. A step whose gradient is zero or not finite teaches nothing: the memory stays as it
    was, and a matrix that was due stays due. (A rule that needs no memory is a plain function, see
    :class:`fira_jax.LowRank`.)

    Example:
      >>> import fira_jax
      >>> isinstance(fira_jax.refresh.Lazy(), fira_jax.refresh.Rule)
      True
    """

    def init(self, view: MatrixView, dtype: jax.typing.DTypeLike) -> Any:
        """The memory at the start, a pytree of arrays ``[*batch, ...]``; ``dtype`` the weight's."""

    def due(self, memory: Any, count: jax.Array, gap: int) -> jax.Array:
        """Which bases are to be replaced before this step, bool ``[*batch]``.

        Args:
          memory: what :meth:`init` or :meth:`update` returned.
          count: steps taken before this one.
          gap: ``update_proj_gap``; each rule says what it means to it.
        """

    def update(self, memory: Any, node: Subspace, old: Any, refreshed: jax.Array, gap: int) -> Any:
        """The memory after a step.

        Args:
          memory: what it was.
          node: the gradient in its subspace, with the basis of this step.
          old: the basis of the step before, like ``node.basis``.
          refreshed: whether the basis was replaced at this step, bool ``[*batch]``.
          gap: ``update_proj_gap``.
        """


def matrix_norm(node: Subspace) -> jax.Array:
    r""":math:`\lVert R \rVert_F` of each matrix, ``[*batch]``."""
    return jnp.sqrt(jnp.sum(node.raw_energy, axis=(-2, -1)))

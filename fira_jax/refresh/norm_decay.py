"""A new subspace when little of the gradient is left inside the old one."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fira_jax.matrix_view import MatrixView
from fira_jax.refresh.protocol import Rule, matrix_norm
from fira_jax.subspace import Subspace


class NormDecayMemory(NamedTuple):
    """What :class:`NormDecay` remembers of each matrix.

    Attributes:
      age: steps with this basis, int32 ``[*batch]``; 0 if a refresh is due.
      initial: norm of the projected gradient at the refresh, float32 or wider ``[*batch]``.
      average: average norm since, likewise.
    """

    age: jax.Array
    initial: jax.Array
    average: jax.Array


@dataclasses.dataclass(frozen=True)
class NormDecay(Rule):
    r"""Refreshes when the norm of the projected gradient has fallen far enough.

    .. math::

        \bar n \le \varsigma\, n_0, \qquad
        n = \lVert P^\top G \rVert_F, \quad \bar n \leftarrow d \bar n + (1 - d) n

    with :math:`n_0` and the first :math:`\bar n` that of the refresh; but not before ``shortest``
    steps, and after ``update_proj_gap`` steps at the latest. State: 3 numbers a matrix.

    Args:
      threshold: :math:`\varsigma`.
      decay: :math:`d`, of the average; 0 for none.
      shortest: steps that a basis is kept at least.
      relative: whether the threshold is relative to the norm at the refresh; False for a norm
        that does not depend on it (:math:`n_0 = 1`).

    Raises:
      ValueError: an argument is out of range.

    References:
      Refael et al., `AdaRankGrad <https://arxiv.org/abs/2410.17881>`_, 2024, stays in a subspace
      while :math:`\lVert \hat G \rVert_F > \varsigma`: that is ``relative=False, decay=0``. With
      stochastic gradients of unknown size it fires never or always; the relative test of an average
      is our reading of it. The paper's :math:`\varsigma` is unverified.

    Example:
      >>> import fira_jax
      >>> tx = fira_jax.galore(1e-2, 8, 200, refresh=fira_jax.refresh.NormDecay(threshold=0.5))
    """

    threshold: float = 0.5
    decay: float = 0.9
    shortest: int = 1
    relative: bool = True

    def __post_init__(self) -> None:
        """Checks the arguments."""
        if not self.threshold >= 0:
            raise ValueError(f"threshold must not be negative, got {self.threshold}")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {self.decay}")
        if self.shortest < 1:
            raise ValueError(f"shortest must be at least 1, got {self.shortest}")

    def init(self, view: MatrixView, dtype: jax.typing.DTypeLike) -> NormDecayMemory:  # noqa: D102
        wide = jnp.promote_types(dtype, jnp.float32)
        # Each has a buffer of its own, so that a fresh state can be donated.
        return NormDecayMemory(*(jnp.zeros(view.batch_shape, x) for x in (jnp.int32, wide, wide)))

    def due(  # noqa: D102
        self,
        memory: NormDecayMemory,
        count: jax.Array,  # noqa: ARG002
        gap: int,  # noqa: ARG002
        index: jax.typing.ArrayLike,  # noqa: ARG002
        total: int,  # noqa: ARG002
    ) -> jax.Array:
        return memory.age == 0

    def update(  # noqa: D102
        self,
        memory: NormDecayMemory,
        node: Subspace,
        old: Any,  # noqa: ARG002
        refreshed: jax.Array,
        gap: int,
    ) -> NormDecayMemory:
        norm = matrix_norm(node).astype(memory.initial.dtype)
        age = jnp.where(refreshed, 1, memory.age + 1)
        initial = jnp.where(refreshed, norm, memory.initial)
        average = jnp.where(refreshed, norm, self.decay * memory.average + (1 - self.decay) * norm)
        small = average <= self.threshold * (initial if self.relative else 1)
        due = (small & (age >= self.shortest)) | (age >= gap)
        return NormDecayMemory(jnp.where(due, 0, age), initial, average)

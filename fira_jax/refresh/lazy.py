"""Fewer refreshes where the basis has stopped turning."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fira_jax.matrix_view import MatrixView
from fira_jax.norms import root
from fira_jax.refresh.protocol import Rule
from fira_jax.subspace import Subspace


class LazyMemory(NamedTuple):
    """What :class:`Lazy` remembers of each matrix.

    Attributes:
      gap: steps between its refreshes, int32 ``[*batch]``; 0 before the first.
      cosines: the latest similarities of successive bases, newest last, ``[*batch, queue]``.
    """

    gap: jax.Array
    cosines: jax.Array


@dataclasses.dataclass(frozen=True)
class Lazy(Rule):
    r"""Doubles a matrix's own gap whenever its leading direction has been stable for some time.

    At each refresh but the first, :math:`|\langle p_{old}, p_{new} \rangle|` of the first basis
    vectors enters a queue. When the queue is full and its mean reaches ``threshold``, the gap is
    multiplied by ``factor``; the queue is not emptied, so a stable matrix then refreshes ever
    less. ``update_proj_gap`` is the gap to start from. Each matrix is due when its gap divides the
    step count. State: ``queue + 1`` numbers a matrix. Also called ``refresh="lazy"``.

    Args:
      threshold: mean similarity that counts as stable.
      queue: how many similarities are averaged.
      factor: what the gap is multiplied by, an integer above 1.

    Raises:
      ValueError: an argument is out of range.

    References:
      Zhang et al., `Q-GaLore <https://arxiv.org/abs/2407.08296>`_, 2024. The released code takes
      the signed cosine, so that an arbitrary sign of the singular vector can pass for a turn by
      180 degrees; this takes the absolute one. It compares with the basis before quantization,
      this with the stored one.

    Example:
      >>> import fira_jax
      >>> tx = fira_jax.galore(1e-2, rank=8, refresh=fira_jax.refresh.Lazy(threshold=0.4))
    """

    threshold: float = 0.4
    queue: int = 5
    factor: int = 2

    def __post_init__(self) -> None:
        """Checks the arguments."""
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must be between 0 and 1, got {self.threshold}")
        if self.queue < 1:
            raise ValueError(f"queue must be at least 1, got {self.queue}")
        if self.factor != int(self.factor) or self.factor < 2:
            raise ValueError(f"factor must be an integer of at least 2, got {self.factor}")

    def init(self, view: MatrixView, dtype: jax.typing.DTypeLike) -> LazyMemory:  # noqa: ARG002, D102
        # Places without an entry hold a number that keeps the mean of any queue below zero.
        empty = jnp.full((*view.batch_shape, self.queue), -self.queue, jnp.float32)
        return LazyMemory(jnp.zeros(view.batch_shape, jnp.int32), empty)

    def due(  # noqa: D102
        self,
        memory: LazyMemory,
        count: jax.Array,
        gap: int,  # noqa: ARG002
        index: jax.typing.ArrayLike,  # noqa: ARG002
        total: int,  # noqa: ARG002
    ) -> jax.Array:
        return (memory.gap == 0) | (count % jnp.maximum(memory.gap, 1) == 0)

    def update(  # noqa: D102
        self, memory: LazyMemory, node: Subspace, old: Any, refreshed: jax.Array, gap: int
    ) -> LazyMemory:
        first = memory.gap == 0
        before, after = (_first_vector(basis, node) for basis in (old, node.basis))
        lengths = root(jnp.sum(jnp.square(before), -1) * jnp.sum(jnp.square(after), -1))
        cosine = jnp.abs(jnp.sum(before * after, axis=-1)) / jnp.where(lengths > 0, lengths, 1)
        shifted = jnp.concatenate([memory.cosines[..., 1:], cosine[..., None]], axis=-1)
        cosines = jnp.where((refreshed & ~first)[..., None], shifted, memory.cosines)
        stable = refreshed & ~first & (jnp.mean(cosines, axis=-1) >= self.threshold)
        longer = jnp.where(stable, memory.gap * self.factor, memory.gap)
        return LazyMemory(jnp.where(first & refreshed, gap, longer), cosines)


def _first_vector(basis: Any, node: Subspace) -> jax.Array:
    """The leading basis vector in float32, ``[*batch, a]``."""
    if isinstance(basis, jax.Array):
        return basis[..., 0].astype(jnp.float32)
    one = jnp.zeros_like(node.raw[..., :1]).at[..., 0, 0].set(1)
    return basis.lift(one)[..., 0].astype(jnp.float32)

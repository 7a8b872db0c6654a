"""Random vectors that are never stored."""

from __future__ import annotations

import dataclasses
import math

import jax

from fira_jax.basis.protocol import Basis
from fira_jax.random_bits import hashed, normal, words_of


@dataclasses.dataclass(frozen=True)
class Random(Basis):
    r"""A Gaussian matrix with entries of variance :math:`1/r`, so that :math:`E[P P^\top] = I`.

    Regenerated from the seed at every step, replaced every ``update_proj_gap`` steps; the state
    holds nothing. Its columns are not orthonormal. Which one it is follows from the seed, the step
    and the gap: where a run goes on with another ``update_proj_gap``, or another seed, the basis is
    another one at once, and moments that are kept count for it as they are, as they do after any
    refresh.

    References:
      Zhu et al., `APOLLO: SGD-like Memory, AdamW-level Performance
      <https://arxiv.org/abs/2412.05270>`_, 2024.

    Example:
      >>> import fira_jax
      >>> fira_jax.LowRank(rank=4, basis="random").basis.orthonormal
      False
    """

    orthonormal = False

    def init(self, a: int, rank: int, dtype: jax.typing.DTypeLike) -> None:  # noqa: ARG002, D102
        return None

    def find(  # noqa: D102
        self,
        grad: jax.Array,  # noqa: ARG002
        stored: jax.Array,
        rank: int,  # noqa: ARG002
        key: jax.Array,  # noqa: ARG002
    ) -> jax.Array:
        return stored

    def vectors(  # noqa: D102
        self,
        stored: jax.Array | None,  # noqa: ARG002
        a: int,
        rank: int,
        dtype: jax.typing.DTypeLike,
        key: jax.Array,
    ) -> jax.Array:
        # Drawn in one dtype always, or enabling x64 would change the basis.
        vectors = normal(hashed(words_of(key), (a, rank))) / math.sqrt(rank)
        return vectors.astype(dtype)

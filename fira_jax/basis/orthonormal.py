"""Random orthonormal vectors."""

from __future__ import annotations

import dataclasses

import jax

from fira_jax.basis.randomized import orthonormalize, random_uniform
from fira_jax.basis.svd import Svd
from fira_jax.random_bits import words_of


@dataclasses.dataclass(frozen=True)
class Orthonormal(Svd):
    """A random subspace: orthonormal vectors drawn without looking at the gradient, and stored.

    References:
      Zmushko et al., `FRUGAL <https://arxiv.org/abs/2411.07837>`_, 2024, its "random" projection.

    Example:
      >>> import fira_jax
      >>> fira_jax.LowRank(rank=4, basis="orthonormal").basis
      Orthonormal()
    """

    def find(  # noqa: D102
        self, grad: jax.Array, stored: jax.Array, rank: int, key: jax.Array
    ) -> jax.Array:
        seed = words_of(key)
        with jax.default_matmul_precision("float32"):
            span = random_uniform(seed, (grad.shape[0], rank), grad.dtype)
            return orthonormalize(span, ~seed).astype(stored.dtype)

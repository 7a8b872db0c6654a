"""Columns of a fixed cosine transform, chosen by the energy they carry."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from fira_jax.basis.columns import match_indices
from fira_jax.basis.protocol import Basis
from fira_jax.checks import require_choice


@dataclasses.dataclass(frozen=True)
class Dct(Basis):
    r"""The :math:`r` vectors of the orthonormal DCT-II that carry most of the gradient's energy.

    .. math::

        D_{ij} = \sqrt{2 / a} \, \cos\left( \pi j (2 i + 1) / (2 a) \right),
        \qquad D_{i0} = \sqrt{1 / a}

    Only the :math:`r` indices are stored, in ascending order; a refresh is one product.

    Args:
      score: what the vectors are chosen by: the ``"energy"`` of their coefficients (squared l2, the
        best choice of :math:`r`) or the sum of their magnitudes, ``"l1"`` (the released code's).

    References:
      Modoranu et al., `SVD-Free Low-Rank Adaptive Gradient Optimization
      <https://arxiv.org/abs/2505.17967>`_, 2025.

    Example:
      >>> import fira_jax
      >>> fira_jax.basis.Dct().init(8, 2, "float32").tolist()
      [0, 1]
    """

    score: Literal["energy", "l1"] = "energy"
    orthonormal = True

    def __post_init__(self) -> None:
        """Checks the arguments."""
        require_choice("score", self.score, ("energy", "l1"))

    def init(self, a: int, rank: int, dtype: jax.typing.DTypeLike) -> jax.Array:  # noqa: ARG002, D102
        return jnp.arange(rank, dtype=jnp.int32)

    def find(  # noqa: D102
        self,
        grad: jax.Array,
        stored: jax.Array,
        rank: int,
        key: jax.Array,  # noqa: ARG002
    ) -> jax.Array:
        a = grad.shape[0]
        with jax.default_matmul_precision("float32"):
            coefficients = cosine_vectors(jnp.arange(a), a, grad.dtype).T @ grad
        size = jnp.square if self.score == "energy" else jnp.abs
        _, indices = jax.lax.top_k(jnp.sum(size(coefficients), axis=1), rank)
        # Ascending, so that a direction that stays keeps its place among the moments.
        return jnp.sort(indices).astype(stored.dtype)

    def vectors(  # noqa: D102
        self,
        stored: jax.Array | None,
        a: int,
        rank: int,  # noqa: ARG002
        dtype: jax.typing.DTypeLike,
        key: jax.Array,  # noqa: ARG002
    ) -> jax.Array:
        assert stored is not None
        return cosine_vectors(stored, a, dtype)

    def turn(self, new: jax.Array, old: jax.Array) -> jax.Array:
        """Directions that stay keep their moments: ``[..., r], [..., r] -> [..., r, r]``."""
        return match_indices(new, old)


def cosine_vectors(indices: jax.Array, a: int, dtype: jax.typing.DTypeLike) -> jax.Array:
    """The DCT-II vectors of length ``a`` with these indices: ``[..., k] -> [..., a, k]``."""
    # Reduced modulo the period in integers: in float32 the cosine of a large angle is noise. In two
    # factors, since the product itself leaves int32 for a above 32,768.
    period, odd, high_low = 4 * a, 2 * jnp.arange(a)[:, None] + 1, jnp.divmod(indices, 256)
    high, low = (part[..., None, :] for part in high_low)
    steps = ((odd * high % period) * 256 + odd * low) % period
    angles = steps.astype(jnp.promote_types(dtype, jnp.float32)) * (jnp.pi / (2 * a))
    vectors = jnp.sqrt(2 / a) * jnp.cos(angles)
    return jnp.where(indices[..., None, :] == 0, jnp.sqrt(1 / a), vectors).astype(dtype)

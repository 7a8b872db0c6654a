"""The leading left singular vectors, by a randomized range finder."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from fira_jax.basis.protocol import canonical_signs
from fira_jax.basis.svd import Svd


@dataclasses.dataclass(frozen=True)
class Randomized(Svd):
    r"""Nearly the best rank-:math:`r` subspace, by matrix products and small factorisations only.

    A Gaussian sketch of the gradient's range is sharpened by ``power_iterations`` rounds of
    :math:`Q \leftarrow \mathrm{orth}(G G^\top Q)`; the :math:`r` leading directions within it
    come from the eigenvectors of :math:`Q^\top G G^\top Q`. The gradient is touched by
    :math:`2 + 2q` products with :math:`k = r + p` columns, about
    :math:`(4 + 4q) a b k` FLOPs; everything else is of size :math:`a k` or :math:`k^2`.

    Args:
      oversample: :math:`p`, extra columns of the sketch.
      power_iterations: :math:`q`.

    References:
      Halko, Martinsson and Tropp, `Finding structure with randomness
      <https://arxiv.org/abs/0909.4061>`_, 2011, algorithms 4.3 and 5.1. GaLore 2
      (`arXiv 2504.20437 <https://arxiv.org/abs/2504.20437>`_) refreshes this way; its own
      ``oversample`` and ``power_iterations`` are not published.

    Example:
      >>> import fira_jax
      >>> low_rank = fira_jax.LowRank(basis=fira_jax.basis.Randomized(power_iterations=2))
    """

    oversample: int = 16
    power_iterations: int = 1

    def __post_init__(self) -> None:
        """Checks the arguments."""
        for name in ("oversample", "power_iterations"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

    def find(  # noqa: D102
        self, grad: jax.Array, stored: jax.Array, rank: int, key: jax.Array
    ) -> jax.Array:
        with jax.default_matmul_precision("float32"):
            a, b = grad.shape
            sketch_key, fill_key = jax.random.split(key)
            columns = min(rank + self.oversample, a, b)
            span = grad @ jax.random.normal(sketch_key, (b, columns), grad.dtype)
            for _ in range(self.power_iterations):
                span = grad @ (grad.T @ orthonormalise(span, passes=1))
            span = orthonormalise(span, passes=3, fill=fill_key)
            within = span.T @ grad
            _, rotation = jnp.linalg.eigh(within @ within.T)  # ascending
            leading = span @ rotation[:, ::-1][:, :rank]
        return canonical_signs(leading).astype(stored.dtype)


def orthonormalise(span: jax.Array, *, passes: int, fill: jax.Array | None = None) -> jax.Array:
    r"""Orthonormal columns with the same span, by shifted Cholesky-QR.

    Each pass divides by the Cholesky factor of the Gram matrix, whose diagonal is raised by some
    units of rounding so that the factor exists whatever the rank. One pass keeps columns from
    collapsing onto the leading direction; three make them orthonormal to rounding.

    Args:
      span: ``[a, k]``, ``k <= a``.
      passes: number of passes.
      fill: key of a perturbation, 1e-4 of the root-mean-square entry, that replaces missing
        directions when ``span`` has fewer than ``k`` of them; it costs 1e-8 of the energy.
    """
    a, k = span.shape
    eps = jnp.finfo(span.dtype).eps
    rms = jnp.sqrt(jnp.mean(jnp.square(span)))
    span = span / jnp.where(rms > 0, rms, 1)
    if fill is not None:
        span = span + 1e-4 * jax.random.normal(fill, span.shape, span.dtype)
    for _ in range(passes):
        gram = span.T @ span
        shift = 4 * k * eps * (jnp.trace(gram) / k) + jnp.finfo(span.dtype).tiny
        factor = jnp.linalg.cholesky(gram + shift * jnp.eye(k, dtype=span.dtype))
        span = jax.scipy.linalg.solve_triangular(factor, span.T, lower=True).T
    return span

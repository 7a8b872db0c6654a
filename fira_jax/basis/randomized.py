"""The leading left singular vectors, by a randomized range finder."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from fira_jax.basis.products import product
from fira_jax.basis.protocol import canonical_signs
from fira_jax.basis.svd import Svd
from fira_jax.random_bits import hashed, words_of


@dataclasses.dataclass(frozen=True)
class Randomized(Svd):
    r"""Nearly the best rank-:math:`r` subspace, by matrix products and small factorizations only.

    A Gaussian sketch of the gradient's range is sharpened by ``power_iterations`` rounds of
    :math:`Q \leftarrow \mathrm{orth}(G G^\top Q)`; the :math:`r` leading directions within it
    come from the eigenvectors of :math:`Q^\top G G^\top Q`. The gradient is touched by
    :math:`2 + 2q` products with :math:`k = r + p` columns, about
    :math:`(4 + 4q) a b k` FLOPs; everything else is of size :math:`a k` or :math:`k^2`.

    Args:
      oversample: :math:`p`, extra columns of the sketch. With 0 there is nothing to choose from:
        the vectors stay as power iteration leaves them, the strongest first by and large, and the
        eigenproblem is left out, with its product.
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
    power_iterations: int = 2

    def __post_init__(self) -> None:
        """Checks the arguments."""
        for name in ("oversample", "power_iterations"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

    @property
    def whole(self) -> bool:  # noqa: D102
        return False

    def find(  # noqa: D102
        self, grad: jax.Array, stored: jax.Array, rank: int, key: jax.Array
    ) -> jax.Array:
        with jax.default_matmul_precision("float32"):
            seed = words_of(key)
            columns = min(rank + self.oversample, *grad.shape)
            span = product(grad, random_uniform(seed, (grad.shape[1], columns), grad.dtype))
            for _ in range(self.power_iterations):
                span = product(grad, product(grad.T, _divide_by_gram_root(span)))
            leading = orthonormalize(span, ~seed)
            if self.oversample:
                within = leading.T @ grad
                _, rotation = jnp.linalg.eigh(within @ within.T, symmetrize_input=False)
                leading = leading @ rotation[:, ::-1][:, :rank]  # eigenvalues ascend
        return canonical_signs(leading).astype(stored.dtype)


def random_uniform(
    seed: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike
) -> jax.Array:
    """Independent numbers in [-1, 1), by hashing each entry's position with ``seed`` (two words).

    As good a sketch as a Gaussian one, and a handful of integer operations where the generator of
    ``jax.random`` takes most of the compile time of a whole refresh. (Random signs would be
    simpler still, but may cancel: the sketch of a small constant gradient is zero for some seeds.)
    """
    return (hashed(seed, shape) >> 8).astype(dtype) * 2.0**-23 - 1


def orthonormalize(span: jax.Array, seed: jax.Array) -> jax.Array:
    r"""Orthonormal columns with the same span.

    Directions that ``span`` lacks (a gradient of low rank) are filled by a random perturbation of
    1e-4 of its root-mean-square entry, which costs 1e-8 of the energy.

    Args:
      span: ``[a, k]`` with ``k <= a``.
      seed: words that seed the perturbation.
    """
    rms = jnp.sqrt(jnp.mean(jnp.square(span)))
    floor = jnp.finfo(span.dtype).eps  # its square must not vanish
    span = span + 1e-4 * jnp.maximum(rms, floor) * random_uniform(seed, span.shape, span.dtype)
    return cholesky_qr(span)


def cholesky_qr(span: jax.Array) -> jax.Array:
    """The orthonormal factor of ``[a, k]``, the triangular one having a positive diagonal.

    Shifted Cholesky-QR, five times. Four passes bring even the weakest direction of a square span
    (a rank of ``a``) to length, if it holds 1e-8 of the energy; the last is all but unshifted,
    since the shift itself leaves every column short, at 144 columns by 3e-5.
    """
    return jax.lax.fori_loop(0, 5, lambda i, x: _divide_by_gram_root(x, last=i == 4), span)


def _divide_by_gram_root(span: jax.Array, last: jax.typing.ArrayLike = False) -> jax.Array:
    """One pass of Cholesky-QR, on a Gram matrix raised by some units of rounding.

    The shift makes the factor exist whatever the rank; directions it drowns come out short
    instead of not at all, and longer with every pass.
    """
    k = span.shape[1]
    gram = product(span.T, span)
    trace, of = jnp.trace(gram), jnp.finfo(span.dtype)
    shift = jnp.maximum(4 * of.eps * jnp.where(last, trace / k, trace), of.tiny)
    factor = jax.lax.linalg.cholesky(
        gram + shift * jnp.eye(k, dtype=span.dtype), symmetrize_input=False
    )
    # The small factor is inverted rather than the span solved for: a product stays where the rows
    # of the span are, whatever devices they are spread over; a solver would gather them.
    inverse = jax.lax.linalg.triangular_solve(
        factor, jnp.eye(k, dtype=span.dtype), left_side=True, lower=True
    )
    return product(span, inverse.T)

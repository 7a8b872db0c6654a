"""A basis that moves by matrix products alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fira_jax.basis.dct import cosine_vectors
from fira_jax.basis.products import product
from fira_jax.basis.randomized import random_uniform
from fira_jax.basis.svd import Svd
from fira_jax.checks import require_count
from fira_jax.random_bits import words_of


@dataclasses.dataclass(frozen=True)
class Oja(Svd):
    r"""Oja's rule: a step towards the gradient's leading directions, made orthonormal again.

    .. math::

        P \leftarrow \mathrm{polar}\left( P + \eta\, \frac{G (G^\top P)}{\bar e} \right), \qquad
        \bar e = \frac{1}{r} \lVert P^\top G \rVert_F^2

    with :math:`\mathrm{polar}(X) = X (X^\top X)^{-1/2}`, the orthonormal matrix nearest to
    :math:`X`. The singular values of its argument are at least 1, since
    :math:`P^\top X = I + \eta P^\top G G^\top P / \bar e`; so Newton-Schulz iterations, which are
    products of small square matrices, find the root. (The step is shortened where the largest would
    pass 1e3.) No factorization, no solver, no eigenproblem:
    nothing that compilers for accelerators dwell on or that would have to be gathered on a mesh.
    The polar factor has no signs or order to choose, so the basis moves continuously, and moments
    kept as they are stay nearly aligned with it.

    The pull :math:`G (G^\top P)` is taken in JAX's default precision, as a step's projection is: on
    real gradients a basis holds as much energy when it is pulled in bfloat16. What makes it
    orthonormal is taken in float32.

    The first basis takes ``first`` such steps from seeded cosine vectors; before that it is zero. A
    refresh takes ``rounds``, each with two products by the gradient. A basis that has nothing of
    the gradient inside stays as it is.

    Args:
      step: :math:`\eta`. The larger, the nearer to a step of block power iteration.
      rounds: steps at each refresh.
      first: steps that make the first basis.

    Raises:
      TypeError: ``rounds`` or ``first`` is not an integer.
      ValueError: an argument is out of its range.

    Example:
      >>> import fira_jax, jax, jax.numpy as jnp
      >>> basis = fira_jax.basis.Oja()
      >>> grad = jnp.outer(jnp.arange(8.0), jnp.ones(12))
      >>> found = basis.find(grad, basis.init(8, 2, "float32"), 2, jax.random.key(0))
      >>> bool(jnp.sum((found.T @ grad) ** 2) > 0.999 * jnp.sum(grad**2))
      True

    References:
      Oja, `A simplified neuron model as a principal component analyzer
      <https://doi.org/10.1007/BF00275687>`_, 1982. The division by the mean energy inside, which
      makes the step free of scale, and the retraction are ours; the coupled iteration for the
      inverse root is that of Higham, *Functions of Matrices*, 2008, section 6.7. Its scale
      is ours.
    """

    step: float = 64.0
    rounds: int = 1
    first: int = 6

    @property
    def whole(self) -> bool:  # noqa: D102
        return False

    moves = True

    def __post_init__(self) -> None:
        """Checks the arguments."""
        if not self.step > 0:
            raise ValueError(f"step must be positive, got {self.step}")
        require_count("rounds", self.rounds)
        require_count("first", self.first)

    def init(self, a: int, rank: int, dtype: jax.typing.DTypeLike) -> jax.Array:  # noqa: D102
        return jnp.zeros((a, rank), dtype)

    def find(  # noqa: D102
        self, grad: jax.Array, stored: jax.Array, rank: int, key: jax.Array
    ) -> jax.Array:
        fresh = jnp.all(stored == 0)
        start = _mixed_cosines(grad.shape[0], rank, grad.dtype, words_of(key))
        basis = jnp.where(fresh, start, stored.astype(grad.dtype))
        # One loop, so that the step is compiled once whatever the number of rounds.
        rounds = jnp.where(fresh, self.first, self.rounds)
        basis = jax.lax.fori_loop(0, rounds, lambda _, basis: self._moved(grad, basis), basis)
        return basis.astype(stored.dtype)

    def pull(self, grad: jax.Array, basis: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What is inside, ``[b, r]``, and where it pulls the basis, ``[a, r]``."""
        inside = product(grad.T, basis)
        return inside, product(grad, inside)

    def _moved(self, grad: jax.Array, basis: jax.Array) -> jax.Array:
        inside, pull = self.pull(grad, basis)
        energy = jnp.mean(jnp.sum(jnp.square(inside), axis=0))
        # The second keeps the condition number below 1e3: where one direction has nearly all of the
        # energy, or much more lies outside than inside.
        size = jnp.maximum(energy / self.step, jnp.linalg.norm(pull) / 1e3)
        moved = basis + pull / jnp.maximum(size, jnp.finfo(grad.dtype).tiny)
        with jax.default_matmul_precision("float32"):
            return polar(moved)


def polar(x: jax.Array) -> jax.Array:
    r"""The orthonormal factor :math:`X (X^\top X)^{-1/2}` of ``[a, k]``, by products alone.

    The root is found by Newton-Schulz iterations in products of ``[k, k]``; some more on the result
    itself take away what rounding has left, which grows with the square of the condition. Both go
    on as long as it takes. With :math:`\rho^2 = 3 / (1 + l + l^2)` an iteration lifts the smallest
    singular value, :math:`l` of the largest, as far as it can without throwing the largest below
    it: by up to 2.6 instead of 1.5.

    Args:
      x: with singular values of at least 1 and, in float32, up to about 1e3.
    """
    eye = jnp.eye(x.shape[1], dtype=x.dtype)
    gram = product(x.T, x)
    size = jnp.sqrt(jnp.sum(jnp.square(gram)))  # at least the largest eigenvalue

    def improve(carry: Any) -> Any:
        count, _, smallest, root, inverse = carry
        both = product(inverse, root)
        error = jnp.max(jnp.abs(eye - both))
        rho = jnp.where(error > 0.01, jnp.sqrt(3 / (1 + smallest + smallest**2)), 1)
        factor = 0.5 * rho * (3 * eye - rho**2 * both)
        smallest = 0.5 * rho * smallest * (3 - (rho * smallest) ** 2)
        return count + 1, error, smallest, product(root, factor), product(factor, inverse)

    def polish(carry: Any) -> Any:
        count, _, y = carry
        off = eye - product(y.T, y)
        return count + 1, jnp.max(jnp.abs(off)), y + 0.5 * product(y, off)

    def while_above(error: float, step: Any, *start: jax.Array) -> Any:
        first = jnp.zeros([], jnp.int32), jnp.ones([], x.dtype), *start
        return jax.lax.while_loop(lambda c: (c[0] < 40) & (c[1] > error), step, first)[-1]

    inverse = while_above(0.01, improve, 1 / jnp.sqrt(size), gram / size, eye)
    return while_above(1e-4, polish, product(x, inverse / jnp.sqrt(size)))


def _mixed_cosines(a: int, rank: int, dtype: jax.typing.DTypeLike, seed: jax.Array) -> jax.Array:
    """Cosine vectors whose entries have seeded signs: orthonormal, and along no axis."""
    signs = jnp.where(random_uniform(seed, (a, 1), dtype) < 0, -1, 1).astype(dtype)
    return signs * cosine_vectors(jnp.arange(rank), a, dtype)

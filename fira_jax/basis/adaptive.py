"""As many basis vectors as the gradient needs, up to the rank."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from fira_jax.basis.protocol import Basis
from fira_jax.basis.randomized import Randomized
from fira_jax.basis.svd import Svd, require_vectors


@dataclasses.dataclass(frozen=True)
class Adaptive(Svd):
    r"""The fewest leading vectors that hold a share of the gradient's energy.

    .. math::

        \rho = \min \left\{ k : \sum_{i \le k} \lVert p_i^\top G \rVert^2
        \ge e \lVert G \rVert_F^2 \right\}

    clipped to between ``smallest`` and the rank. The other columns are zero, which switches them
    off without changing a shape: a program compiled once serves every rank. To free the memory too,
    see :func:`fira_jax.active_ranks` and :func:`fira_jax.resize_state`.

    Args:
      energy: :math:`e`, the share of the squared Frobenius norm that is kept.
      smallest: vectors that are kept at least.
      of: where the vectors come from, in the order of their energy: a basis that is found anew at
        each refresh.

    Raises:
      ValueError: an argument is out of range.

    References:
      Refael et al., `AdaRankGrad <https://arxiv.org/abs/2410.17881>`_, 2024: :math:`e = 1 - \eta`.
      Its value is unverified; 0.96 is what a port of it keeps (a relative error of 0.2).

    Example:
      >>> import fira_jax, jax, jax.numpy as jnp
      >>> grad = jnp.zeros((4, 8)).at[0, 0].set(3.0).at[1, 1].set(1.0).at[2, 2].set(0.1)
      >>> basis = fira_jax.basis.Adaptive(energy=0.96, of=fira_jax.basis.Svd())
      >>> basis.find(grad, basis.init(4, 3, "float32"), 3, jax.random.key(0)).any(axis=0).tolist()
      [True, True, False]
    """

    energy: float = 0.96
    smallest: int = 1
    of: Basis = Randomized()  # noqa: RUF009  # frozen

    orthonormal = False  # some vectors are zero
    turns = True

    def __post_init__(self) -> None:
        """Checks the arguments."""
        if not 0 < self.energy <= 1:
            raise ValueError(f"energy must be above 0 and at most 1, got {self.energy}")
        if self.smallest < 1:
            raise ValueError(f"smallest must be at least 1, got {self.smallest}")
        require_vectors("of", self.of)
        if self.of.moves:
            raise ValueError(
                "of must be a basis that is found anew at each refresh: vectors that are switched "
                f"off leave nothing to move on from, got {self.of!r}"
            )

    @property
    def whole(self) -> bool:  # noqa: D102
        return self.of.whole

    @property
    def scale_free(self) -> bool:  # noqa: D102
        return self.of.scale_free

    def find(  # noqa: D102
        self, grad: jax.Array, stored: jax.Array, rank: int, key: jax.Array
    ) -> jax.Array:
        vectors = self.of.find(grad, stored.astype(grad.dtype), rank, key)
        energies = jnp.sum(jnp.square(vectors.T @ grad), axis=1)
        before = jnp.cumsum(energies) - energies
        needed = before < self.energy * jnp.sum(jnp.square(grad))
        needed |= jnp.arange(rank) < self.smallest
        return jnp.where(needed, vectors, 0).astype(stored.dtype)

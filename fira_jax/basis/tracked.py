"""Bases that move on from where they are, instead of being found anew."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from fira_jax.basis.products import product
from fira_jax.basis.protocol import Basis
from fira_jax.basis.randomized import Randomized, cholesky_qr
from fira_jax.basis.svd import Svd, require_vectors


@dataclasses.dataclass(frozen=True)
class Tracked(Svd):
    """A basis that is found once and moved by every later refresh.

    Before the first usable gradient it is zero: there is no subspace yet.

    Args:
      start: how the first one is found.
    """

    start: Basis = dataclasses.field(default=Randomized(), kw_only=True)

    moves = True

    def __post_init__(self) -> None:
        """Checks the argument."""
        require_vectors("start", self.start)

    @property
    def whole(self) -> bool:  # noqa: D102
        return self.start.whole

    def init(self, a: int, rank: int, dtype: jax.typing.DTypeLike) -> jax.Array:  # noqa: D102
        return jnp.zeros((a, rank), dtype)

    def find(  # noqa: D102
        self, grad: jax.Array, stored: jax.Array, rank: int, key: jax.Array
    ) -> jax.Array:
        return jax.lax.cond(
            jnp.any(stored != 0),
            lambda: self.move(grad, stored.astype(grad.dtype)).astype(stored.dtype),
            lambda: self.start.find(grad, stored, rank, key),
        )

    def move(self, grad: jax.Array, basis: jax.Array) -> jax.Array:
        """The next basis, ``[a, r]``, from a gradient and the present one."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class PowerIteration(Tracked):
    r"""One block power iteration at each refresh, starting from the basis as it is.

    .. math::

        P \leftarrow \mathrm{qr}\left( G (G^\top P) + \delta P \right)

    Two products of rank :math:`r` and no factorization of anything larger: cheap enough for every
    step. Over steps the basis converges to the leading singular vectors of a slowly changing
    matrix. Directions that it lacks stay as they are, by a :math:`\delta` of the size of rounding
    errors (the root of the unit of rounding, relative to the first term). The triangular factor of
    qr has a positive diagonal, so vectors keep their signs from step to step.

    Args:
      start: how the first basis is found.

    References:
      Robert et al., `LDAdam <https://arxiv.org/abs/2410.16103>`_, 2024, after Vogels et al.,
      `PowerSGD <https://arxiv.org/abs/1905.13727>`_, 2019.

    Example:
      >>> import fira_jax
      >>> low_rank = fira_jax.LowRank(16, 1, basis=fira_jax.basis.PowerIteration())
    """

    def move(self, grad: jax.Array, basis: jax.Array) -> jax.Array:  # noqa: D102
        with jax.default_matmul_precision("float32"):
            span = product(grad, product(grad.T, basis))
            span = span / jnp.sqrt(jnp.mean(jnp.sum(jnp.square(span), axis=0)))
            return cholesky_qr(span + jnp.sqrt(jnp.finfo(span.dtype).eps) * basis)


@dataclasses.dataclass(frozen=True)
class Grassmann(Tracked):
    r"""A step along the geodesic that lowers the error of the projection fastest.

    The error :math:`\lVert G - P P^\top G \rVert_F^2` has the gradient

    .. math::

        \nabla = -2 (G - P A) A^\top \approx \sigma u v^\top, \qquad A = P^\top G,

    on the Grassmann manifold, of which the leading singular triple is taken; the basis turns one of
    its directions, :math:`P v`, by the angle :math:`\sigma \eta` away from :math:`u`:

    .. math::

        P \leftarrow (P v \cos \sigma\eta - u \sin \sigma\eta) v^\top + P (I - v v^\top)

    The angle grows with the square of the gradient's size: :math:`\eta` is a step in its units.

    Args:
      step: :math:`\eta`.
      start: how the first basis is found.

    Raises:
      ValueError: ``step`` is not positive.

    References:
      Rajabi et al., `SubTrack++ <https://arxiv.org/abs/2502.01586>`_, 2025. The paper's formula;
      the released code leaves the basis of a tall or square matrix where it is.

    Example:
      >>> import fira_jax
      >>> low_rank = fira_jax.LowRank(16, 200, basis=fira_jax.basis.Grassmann(step=10.0))
    """

    step: float = 10.0
    scale_free = False

    def __post_init__(self) -> None:
        """Checks the arguments."""
        super().__post_init__()
        if not self.step > 0:
            raise ValueError(f"step must be positive, got {self.step}")

    def move(self, grad: jax.Array, basis: jax.Array) -> jax.Array:  # noqa: D102
        largest = jnp.max(jnp.abs(grad))
        grad = grad / largest
        with jax.default_matmul_precision("float32"):
            inside = basis.T @ grad
            tangent = -2 * (grad - basis @ inside) @ inside.T
            _, right = jnp.linalg.eigh(tangent.T @ tangent, symmetrize_input=False)
            v = right[:, -1:]
            along = tangent @ v
            sigma = jnp.linalg.norm(along)
            u = along / jnp.maximum(sigma, jnp.finfo(grad.dtype).tiny)
            angle = self.step * sigma * jnp.square(largest)
            angle = jnp.where(jnp.isfinite(angle), angle, 0)
            turned = basis @ v * jnp.cos(angle) - u * jnp.sin(angle)
            return cholesky_qr(basis + (turned - basis @ v) @ v.T)

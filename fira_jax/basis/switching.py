"""Leading directions of all gradients so far, and random ones beside them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fira_jax.basis.protocol import Basis, canonical_signs
from fira_jax.basis.randomized import Randomized, cholesky_qr, random_uniform
from fira_jax.basis.svd import Svd
from fira_jax.random_bits import words_of


@dataclasses.dataclass(frozen=True)
class Switching(Basis):
    r"""Some tracked leading directions, the others drawn anew from what is orthogonal to them.

    The uncentred covariance of the gradients is kept inside the subspace only,
    :math:`\tilde Q \leftarrow \beta \tilde Q + (1 - \beta) R R^\top` at every step. A refresh puts
    it together with the present gradient, makes one subspace iteration from the basis as it is,

    .. math::

        Q = \beta P \tilde Q P^\top + (1 - \beta) G G^\top, \qquad
        P \leftarrow \mathrm{eigenvectors\ of\ } Q \mathrm{\ within\ } Q P

    keeps the first ``leading`` vectors and draws the others at random from the orthogonal
    complement of those: a subspace that only follows would never look elsewhere. Stores
    :math:`ar + r^2` numbers, without the covariance :math:`ar`.

    Args:
      leading: how many directions are kept at a refresh; all that there are at the most.
      decay: :math:`\beta`; 0 keeps no covariance.
      start: how the first basis is found.

    References:
      Gong et al., `Alice <https://arxiv.org/abs/2502.07752>`_, 2025. Printed, it starts from a zero
      basis, which a subspace iteration cannot leave. The covariance is not turned into the new
      basis, nor are moments.

    Example:
      >>> import fira_jax
      >>> low_rank = fira_jax.LowRank(128, basis=fira_jax.basis.Switching(leading=40))
      >>> [x.shape for x in low_rank.basis.init(64, 8, "float32")]
      [(64, 8), (8, 8)]
    """

    leading: int = 40
    decay: float = 0.999
    start: Svd = dataclasses.field(default=Randomized(), kw_only=True)
    orthonormal = True
    moves = True
    # The gradient is added to a covariance: its size matters.
    scale_free = False

    def __post_init__(self) -> None:
        """Checks the arguments."""
        if self.leading < 0:
            raise ValueError(f"leading must not be negative, got {self.leading}")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {self.decay}")

    @property
    def observes(self) -> bool:  # noqa: D102
        return self.decay != 0

    @property
    def whole(self) -> bool:  # noqa: D102
        return self.start.whole

    def init(self, a: int, rank: int, dtype: jax.typing.DTypeLike) -> Any:  # noqa: D102
        basis = jnp.zeros((a, rank), dtype)
        if self.decay == 0:
            return basis
        return basis, jnp.zeros((rank, rank), jnp.promote_types(dtype, jnp.float32))

    def observe(self, stored: Any, raw: jax.Array) -> Any:
        """Counts a gradient's coordinates ``[..., r, b]`` into the covariance."""
        if self.decay == 0:
            return stored
        basis, covariance = stored
        new = self.decay * covariance + (1 - self.decay) * (raw @ raw.mT)
        return basis, new.astype(covariance.dtype)

    def find(self, grad: jax.Array, stored: Any, rank: int, key: jax.Array) -> Any:  # noqa: D102
        basis, covariance = (stored, jnp.zeros((rank, rank))) if self.decay == 0 else stored
        new = jax.lax.cond(
            jnp.any(basis != 0),
            lambda: self._move(grad, basis.astype(grad.dtype), covariance, key),
            lambda: self.start.find(grad / jnp.max(jnp.abs(grad)), grad[:, :rank], rank, key),
        ).astype(basis.dtype)
        return new if self.decay == 0 else (new, covariance)

    def vectors(  # noqa: D102
        self,
        stored: Any,
        a: int,  # noqa: ARG002
        rank: int,  # noqa: ARG002
        dtype: jax.typing.DTypeLike,  # noqa: ARG002
        key: jax.Array,  # noqa: ARG002
    ) -> jax.Array:
        return stored if self.decay == 0 else stored[0]

    def _move(
        self, grad: jax.Array, basis: jax.Array, covariance: jax.Array, key: jax.Array
    ) -> jax.Array:
        with jax.default_matmul_precision("float32"):
            # To a common size of one, since squares of squares follow.
            size = jnp.maximum(jnp.max(jnp.abs(grad)), jnp.sqrt(jnp.max(jnp.abs(covariance))))
            grad, covariance = grad / size, (covariance / size / size).astype(grad.dtype)
            new = 1 - self.decay

            def times(x: jax.Array) -> jax.Array:
                tracked = basis @ (covariance @ (basis.T @ x))
                return self.decay * tracked + new * (grad @ (grad.T @ x))

            span = times(basis)
            span = span / jnp.sqrt(jnp.mean(jnp.sum(jnp.square(span), axis=0)))
            # What the gradients lack stays as it is.
            span = cholesky_qr(span + jnp.sqrt(jnp.finfo(span.dtype).eps) * basis)
            _, rotation = jnp.linalg.eigh(span.T @ times(span))
            kept = canonical_signs(span @ rotation[:, ::-1])[:, : self.leading]
            missing = basis.shape[1] - kept.shape[1]
            if missing == 0:
                return kept
            drawn = random_uniform(words_of(key), (len(basis), missing), basis.dtype)
            drawn = drawn / jnp.sqrt(jnp.sum(jnp.square(drawn), axis=0))
            return jnp.concatenate([kept, _complement(kept, drawn)], axis=1)


def _complement(kept: jax.Array, drawn: jax.Array) -> jax.Array:
    """Orthonormal vectors that span what of ``drawn`` is orthogonal to ``kept``."""
    for _ in range(2):  # what rounding leaves in the directions kept goes with the second pass
        drawn = cholesky_qr(drawn - kept @ (kept.T @ drawn))
    return drawn

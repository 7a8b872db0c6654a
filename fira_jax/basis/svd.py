"""The leading left singular vectors, exactly."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from fira_jax.basis.protocol import Basis, canonical_signs, coordinate_vectors


@dataclasses.dataclass(frozen=True)
class Svd(Basis):
    r"""The best rank-:math:`r` subspace of the gradient: its leading left singular vectors.

    What GaLore and Fira use. Meant for parity with them and for small matrices: the cost is
    :math:`O(a b \min(a, b))` with a large constant, and compilers for accelerators handle it badly.

    Example:
      >>> import fira_jax
      >>> fira_jax.LowRank(rank=4, basis="svd").basis
      Svd()
    """

    orthonormal = True

    @property
    def whole(self) -> bool:  # noqa: D102
        return True

    def init(self, a: int, rank: int, dtype: jax.typing.DTypeLike) -> jax.Array:  # noqa: D102
        return coordinate_vectors(a, rank, dtype)

    def find(  # noqa: D102
        self,
        grad: jax.Array,
        stored: jax.Array,
        rank: int,
        key: jax.Array,  # noqa: ARG002
    ) -> jax.Array:
        left, _, _ = jnp.linalg.svd(grad, full_matrices=False)
        return canonical_signs(left[:, :rank]).astype(stored.dtype)

    def vectors(  # noqa: D102
        self,
        stored: jax.Array | None,
        a: int,  # noqa: ARG002
        rank: int,  # noqa: ARG002
        dtype: jax.typing.DTypeLike,  # noqa: ARG002
        key: jax.Array,  # noqa: ARG002
    ) -> jax.Array:
        assert stored is not None
        return stored


def require_vectors(name: str, basis: Basis) -> None:
    """Raises ``ValueError`` naming the argument unless a basis stores vectors that it found."""
    if not isinstance(basis, Svd):
        raise ValueError(f"{name} must be a basis that stores its vectors, got {basis!r}")

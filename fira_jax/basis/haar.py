"""Means of neighbouring rows: what a Haar wavelet transform calls its approximation."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from fira_jax.basis.protocol import Basis


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockMeans:
    r"""Orthonormal indicators of blocks, as :class:`fira_jax.basis.Directions`.

    Direction :math:`i` is :math:`1 / \sqrt k` on the :math:`k` entries of block :math:`i` and zero
    elsewhere. The last blocks are shorter, or empty, where ``count`` does not divide ``size``.

    Attributes:
      count: ``r``, number of blocks.
      size: ``a``, entries in all blocks.
    """

    count: int = dataclasses.field(metadata={"static": True})
    size: int = dataclasses.field(metadata={"static": True})
    dtype = np.dtype("float64")

    @property
    def _lengths(self) -> np.ndarray:
        """How many entries each block has, ``[r, 1]``."""
        length = -(-self.size // self.count)
        starts = np.minimum(length * np.arange(self.count + 1), self.size)
        return np.diff(starts)[:, None]

    def project(self, matrix: jax.Array) -> jax.Array:
        """Sums over the root of the length, ``[*batch, a, b] -> [*batch, r, b]``."""
        lengths = self._lengths
        missing = lengths[0, 0] * self.count - self.size
        padding = [(0, 0)] * (matrix.ndim - 2) + [(0, missing), (0, 0)]
        blocks = jnp.pad(matrix, padding).reshape(
            *matrix.shape[:-2], self.count, lengths[0, 0], matrix.shape[-1]
        )
        return jnp.sum(blocks, axis=-2) * self._weights(matrix.dtype)

    def lift(self, coordinates: jax.Array) -> jax.Array:
        """Each coordinate on all of its block, ``[*batch, r, b] -> [*batch, a, b]``."""
        return self.spread(coordinates * self._weights(coordinates.dtype))

    def spread(self, x: jax.Array) -> jax.Array:
        """A value for each block to all its entries, ``[*batch, r, b] -> [*batch, a, b]``."""
        return jnp.repeat(x, self._lengths[0, 0], axis=-2)[..., : self.size, :]

    def _weights(self, dtype: jax.typing.DTypeLike) -> jax.Array:
        return jnp.asarray(1 / np.sqrt(np.maximum(self._lengths, 1)), dtype)


@dataclasses.dataclass(frozen=True)
class Haar(Basis):
    r"""Block means: the :math:`r` low-pass coefficients of a Haar wavelet transform.

    With :math:`a / r = 2^\ell` these are the approximation coefficients of level :math:`\ell`; what
    they miss is everything that the detail coefficients of all levels hold. Never changes and
    stores nothing; its products are sums, not multiplications.

    References:
      Wen et al., `Gradient wavelet transform <https://arxiv.org/abs/2501.07237>`_, 2025. Where
      :math:`r` does not divide :math:`a`, the last block is shorter and has its own length's mean.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> basis = fira_jax.basis.Haar().vectors(None, 4, 2, "float32", None)
      >>> basis.project(jnp.ones((4, 1))).tolist()  # doctest: +ELLIPSIS
      [[1.414...], [1.414...]]
    """

    orthonormal = True
    any_rank = True

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
        dtype: jax.typing.DTypeLike,  # noqa: ARG002
        key: jax.Array,  # noqa: ARG002
    ) -> BlockMeans:
        return BlockMeans(rank, a)

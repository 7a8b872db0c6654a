"""Random entries of the matrix, as many in each column."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from fira_jax.basis.columns import places, random_subset
from fira_jax.basis.protocol import Basis
from fira_jax.random_bits import hashed, mixed, words_of


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Entries:
    """In each column coordinate directions of its own, as :class:`fira_jax.basis.Directions`.

    One subset of the compressed side for all columns, turned by a random amount in each: every
    entry of the matrix is as likely as every other, and only the subset is kept.

    Attributes:
      indices: the subset before it is turned, ``[*batch, r]``, int32.
      seed: seeds the turns, ``[*batch]``, int32.
      size: ``a``, the length of a column.
    """

    indices: jax.Array
    seed: jax.Array
    size: int = dataclasses.field(metadata={"static": True})
    dtype = np.dtype("float64")

    def _turns(self, columns: int) -> jax.Array:
        """By how much the subset is turned in each column, ``[*batch, 1, b]``."""
        seed = self.seed[..., None, None].astype(jnp.uint32)
        words = mixed(mixed(jnp.arange(columns, dtype=jnp.uint32)) ^ seed)
        return (words % self.size).astype(jnp.int32)

    def project(self, matrix: jax.Array) -> jax.Array:
        """The chosen entries, ``[*batch, a, b] -> [*batch, r, b]``."""
        rows = (self.indices[..., None] + self._turns(matrix.shape[-1])) % self.size
        return jnp.take_along_axis(matrix, rows, axis=-2)

    def lift(self, coordinates: jax.Array) -> jax.Array:
        """The entries back in their places, others zero, ``[*batch, r, b] -> [*batch, a, b]``."""
        before = (jnp.arange(self.size)[:, None] - self._turns(coordinates.shape[-1])) % self.size
        rows = jnp.take_along_axis(places(self.indices, self.size)[..., None], before, axis=-2)
        return jnp.take_along_axis(coordinates, rows, axis=-2, mode="fill", fill_value=0)


@dataclasses.dataclass(frozen=True)
class RandK(Basis):
    r""":math:`r` entries of each column drawn at random, others in other columns.

    Stores :math:`r + 1` integers for a matrix, the last of which seeds the turns.

    References:
      Zmushko et al., `FRUGAL <https://arxiv.org/abs/2411.07837>`_, 2024: its "randk" draws from the
      whole matrix, so that the number of entries differs from column to column.

    Example:
      >>> import fira_jax
      >>> fira_jax.basis.RandK().init(8, 2, "float32").tolist()
      [0, 1, 0]
    """

    orthonormal = True
    any_rank = True
    # A new draw moves each column's coordinates in its own way: no product turns the moments.
    turns = False

    def init(self, a: int, rank: int, dtype: jax.typing.DTypeLike) -> jax.Array:  # noqa: ARG002, D102
        return jnp.append(jnp.arange(rank, dtype=jnp.int32), jnp.int32(0))

    def find(  # noqa: D102
        self,
        grad: jax.Array,
        stored: jax.Array,
        rank: int,
        key: jax.Array,
    ) -> jax.Array:
        # Of other words than the subset.
        seed = jax.lax.bitcast_convert_type(hashed(~words_of(key), (1, 1))[0, 0], jnp.int32)
        return jnp.append(random_subset(key, grad.shape[0], rank), seed).astype(stored.dtype)

    def vectors(  # noqa: D102
        self,
        stored: jax.Array | None,
        a: int,
        rank: int,  # noqa: ARG002
        dtype: jax.typing.DTypeLike,  # noqa: ARG002
        key: jax.Array,  # noqa: ARG002
    ) -> Entries:
        assert stored is not None
        return Entries(stored[..., :-1], stored[..., -1], a)

"""Random coordinate directions: some of the matrix's own rows or columns."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from fira_jax.basis.protocol import Basis
from fira_jax.random_bits import hashed, uniform, words_of


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Coordinates:
    """Coordinate directions, as :class:`fira_jax.basis.Directions`: products become picks.

    Attributes:
      indices: which entries of the compressed side, ``[*batch, r]``, int32.
      size: ``a``, how many there are.
    """

    indices: jax.Array
    size: int = dataclasses.field(metadata={"static": True})
    dtype = np.dtype("float64")

    def project(self, matrix: jax.Array) -> jax.Array:
        """The chosen rows, ``[*batch, a, b] -> [*batch, r, b]``."""
        return jnp.take_along_axis(matrix, self.indices[..., None], axis=-2)

    def lift(self, coordinates: jax.Array) -> jax.Array:
        """The rows back in their places, others zero, ``[*batch, r, b] -> [*batch, a, b]``."""
        rows = places(self.indices, self.size)[..., None]
        return jnp.take_along_axis(coordinates, rows, axis=-2, mode="fill", fill_value=0)


def places(indices: jax.Array, size: int) -> jax.Array:
    """Where each of ``range(size)`` stands in ``indices``, ``r`` if nowhere: ``[*batch, size]``."""
    # Compared, not scattered: a gather the other way round is what accelerators do well.
    found = indices[..., None, :] == jnp.arange(size)[:, None]
    return jnp.where(found.any(-1), jnp.argmax(found, -1), indices.shape[-1]).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Columns(Basis):
    r""":math:`r` coordinate directions drawn at random: whole rows or columns of the weight.

    With ``side="input"`` those are input units (columns of a PyTorch weight), with ``"output"``
    output units. Only their indices are stored, in ascending order. Where the batch of a stacked
    parameter is read as the compressed side, a direction is a whole layer: see
    :func:`fira_jax.frugal`.

    References:
      Zmushko et al., `FRUGAL <https://arxiv.org/abs/2411.07837>`_, 2024: its "columns" and its
      permutation basis.

    Example:
      >>> import fira_jax
      >>> fira_jax.basis.Columns().init(8, 2, "float32").tolist()
      [0, 1]
    """

    orthonormal = True
    any_rank = True

    def init(self, a: int, rank: int, dtype: jax.typing.DTypeLike) -> jax.Array:  # noqa: ARG002, D102
        return jnp.arange(rank, dtype=jnp.int32)

    def find(  # noqa: D102
        self,
        grad: jax.Array,
        stored: jax.Array,
        rank: int,
        key: jax.Array,
    ) -> jax.Array:
        return random_subset(key, grad.shape[0], rank).astype(stored.dtype)

    def vectors(  # noqa: D102
        self,
        stored: jax.Array | None,
        a: int,
        rank: int,  # noqa: ARG002
        dtype: jax.typing.DTypeLike,  # noqa: ARG002
        key: jax.Array,  # noqa: ARG002
    ) -> Coordinates:
        assert stored is not None
        return Coordinates(stored, a)

    def turn(self, new: jax.Array, old: jax.Array) -> jax.Array:
        """Directions that stay keep their moments: ``[..., r], [..., r] -> [..., r, r]``."""
        return match_indices(new, old)


def random_subset(key: jax.Array, size: int, count: int) -> jax.Array:
    """``count`` of ``range(size)``, each subset equally likely, in ascending order."""
    _, chosen = jax.lax.top_k(uniform(hashed(words_of(key), (1, size)))[0], count)
    return jnp.sort(chosen)


def match_indices(new: jax.Array, old: jax.Array) -> jax.Array:
    r""":math:`P_{new}^\top P_{old}` for vectors of one orthonormal set: 1 where an index stays."""
    return new[..., :, None] == old[..., None, :]

"""The narrow interface behind which every kind of basis stands."""

from __future__ import annotations

import abc
from typing import Any

import jax
import jax.numpy as jnp

from fira_jax.matrix_view import Directions


class Basis(abc.ABC):
    r"""How the subspace of one matrix is found, stored and turned into vectors.

    A frozen dataclass derived from this class, with the three methods :meth:`init`, :meth:`find`
    and :meth:`vectors`; everything else has a default. All methods see a single matrix in canonical
    orientation, ``a`` being the compressed axis; batching, the schedule of refreshes and the guard
    against unusable gradients are done around them. What is stored is an array, or a pytree of
    several, or nothing.

    Example:
      >>> import fira_jax
      >>> isinstance(fira_jax.basis.Svd(), fira_jax.basis.Basis)
      True
    """

    @property
    def orthonormal(self) -> bool:
        """Whether :meth:`vectors` has orthonormal columns; False by default, as all that follow."""
        return False

    @property
    def turns(self) -> bool:
        r"""Whether moments can be carried by :math:`P_{new}^\top P_{old}` without growing.

        By default that is so of orthonormal vectors.
        """
        return self.orthonormal

    @property
    def any_rank(self) -> bool:
        """Whether there can be more vectors than the matrix has columns."""
        return False

    @property
    def scale_free(self) -> bool:
        """Whether :meth:`find` may be given a gradient of any size; True by default."""
        return True

    @property
    def whole(self) -> bool:
        """Whether :meth:`find` needs all of a matrix on one device.

        Each device of a mesh is then dealt matrices of its own.
        """
        return False

    @property
    def moves(self) -> bool:
        """Whether :meth:`find` starts from the basis as it is, and must find there what it left."""
        return False

    @property
    def observes(self) -> bool:
        """Whether :meth:`observe` does anything."""
        return False

    @abc.abstractmethod
    def init(self, a: int, rank: int, dtype: jax.typing.DTypeLike) -> Any:
        """What is stored before the first refresh, or None if nothing ever is."""

    @abc.abstractmethod
    def find(self, grad: jax.Array, stored: Any, rank: int, key: jax.Array) -> Any:
        """A new stored value from a gradient.

        Args:
          grad: ``[a, b]``, float32 or wider; finite, its largest magnitude scaled to 1 if the
            basis is free of scale.
          stored: the value it replaces.
          rank: dimension of the subspace.
          key: the same for all matrices of a step, so that stacking changes nothing.

        Returns:
          A value of the structure, shapes and dtypes of ``stored``.
        """

    @abc.abstractmethod
    def vectors(
        self,
        stored: Any,
        a: int,
        rank: int,
        dtype: jax.typing.DTypeLike,
        key: jax.Array,
    ) -> jax.Array | Directions:
        """The basis ``[..., a, rank]`` that ``stored`` stands for, as an array or as directions.

        ``stored`` has leading batch axes, ``[..., *shape of init]``, in each of its arrays.
        """

    def turn(self, new: Any, old: Any) -> jax.Array | None:  # noqa: ARG002
        r""":math:`P_{new}^\top P_{old}`, ``[..., rank, rank]``, from what is stored.

        None, the default, where the product of the vectors is the simplest way.
        """
        return None

    def observe(self, stored: Any, raw: jax.Array) -> Any:  # noqa: ARG002
        """What is stored after a step in which the coordinates were ``raw``, ``[..., rank, b]``."""
        return stored

    def stores(self) -> bool:
        """Whether anything is stored at all."""
        return bool(jax.tree.leaves(jax.eval_shape(lambda: self.init(256, 256, jnp.float32))))


def canonical_signs(vectors: jax.Array) -> jax.Array:
    r"""Gives each column the sign that makes its entry of largest magnitude positive.

    A singular vector's sign is arbitrary and differs between linear-algebra libraries; past the
    first refresh so would the whole trajectory.

    Args:
      vectors: ``[..., a, r]``.

    Example:
      >>> import jax.numpy as jnp
      >>> canonical_signs(jnp.array([[1.0, 0.6], [-2.0, 0.8]])).tolist()
      [[-1.0, 0.6000000238418579], [2.0, 0.800000011920929]]
    """
    largest = jnp.argmax(jnp.abs(vectors), axis=-2, keepdims=True)  # the first one on ties
    pivot = jnp.take_along_axis(vectors, largest, axis=-2)
    return jnp.where(pivot < 0, -vectors, vectors)


def coordinate_vectors(a: int, rank: int, dtype: jax.typing.DTypeLike) -> jax.Array:
    """The first ``rank`` coordinate directions, ``[a, rank]``.

    A basis to start from: valid before any usable gradient was seen, and what an SVD makes of a
    zero gradient in LAPACK.
    """
    return jnp.eye(a, rank, dtype=dtype)

"""How an array of any rank is read as a stack of matrices."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from fira_jax.norms import column_energy


class Directions(Protocol):
    """A basis that is never written out as an array, since its products need no multiplications.

    Such as coordinate directions, which only pick rows. A registered pytree; its arrays may have
    leading batch axes. It stands wherever a basis ``[*batch, a, r]`` could.

    Attributes:
      dtype: the dtype whose rounding its vectors bear; float64 if they are exact in any.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> picks = fira_jax.basis.Columns().vectors(jnp.array([1, 3]), 4, 2, "float32", None)
      >>> picks.project(jnp.arange(4.0)[:, None]).tolist()
      [[1.0], [3.0]]
    """

    dtype: Any

    def project(self, matrix: jax.Array) -> jax.Array:
        r""":math:`P^\top G`, ``[*batch, a, b] -> [*batch, r, b]``, in the dtype of the matrix."""

    def lift(self, coordinates: jax.Array) -> jax.Array:
        r""":math:`P X`, ``[*batch, r, b] -> [*batch, a, b]``, in the dtype of the coordinates."""


@dataclasses.dataclass(frozen=True)
class MatrixView:
    r"""How an array of any rank is read as a stack of matrices.

    The array becomes ``[*batch, m, n]`` with ``m`` the product of the input (reduction) axes and
    ``n`` that of the output axes. One of the two is compressed. Every array that belongs to the
    subspace is written in the *canonical* orientation, :math:`G \in \mathbb{R}^{a \times b}` with
    ``a`` the compressed axis, whichever of ``m`` and ``n`` that is.

    Attributes:
      shape: shape of the array.
      batch_axes: axes whose slices are independent matrices.
      input_axes: axes that form ``m``.
      output_axes: axes that form ``n``.
      compress_input: whether ``a`` is ``m`` (else it is ``n``).
      rank: ``r``, dimension of the subspace; 0 for methods without one.
      pieces: into how many matrices of their own, of ``a / pieces`` by ``b``, each is cut along
        the compressed axis. They become the last batch axis.

    Example:
      >>> import fira_jax
      >>> view = fira_jax.MatrixView((4, 64, 176), (0,), (1,), (2,), compress_input=True, rank=8)
      >>> view.batch_shape, view.matrix_shape, view.compressed_size
      ((4,), (64, 176), 64)
    """

    shape: tuple[int, ...]
    batch_axes: tuple[int, ...]
    input_axes: tuple[int, ...]
    output_axes: tuple[int, ...]
    compress_input: bool
    rank: int
    pieces: int = 1

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Sizes of the batch axes, and the number of pieces if there are several."""
        batch = tuple(self.shape[i] for i in self.batch_axes)
        return batch if self.pieces == 1 else (*batch, self.pieces)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """``(m, n)``: input size and output size, of a piece."""
        m = math.prod(self.shape[i] for i in self.input_axes)
        n = math.prod(self.shape[i] for i in self.output_axes)
        return (m // self.pieces, n) if self.compress_input else (m, n // self.pieces)

    @property
    def compressed_size(self) -> int:
        """``a``: the length that the basis spans."""
        return self.matrix_shape[0 if self.compress_input else 1]

    @property
    def long_size(self) -> int:
        """``b``: the length that stays."""
        return self.matrix_shape[1 if self.compress_input else 0]

    @property
    def _order(self) -> tuple[int, ...]:
        return self.batch_axes + self.input_axes + self.output_axes

    def to_matrix(self, x: jax.Array) -> jax.Array:
        """Array ``shape`` -> ``[*batch, m, n]``."""
        x = x.transpose(self._order)
        if self.pieces == 1 or self.compress_input:
            return x.reshape(*self.batch_shape, *self.matrix_shape)
        m, n = self.matrix_shape
        return x.reshape(*self.batch_shape[:-1], m, self.pieces, n).swapaxes(-3, -2)

    def from_matrix(self, y: jax.Array) -> jax.Array:
        """``[*batch, m, n]`` -> array ``shape``."""
        if self.pieces > 1 and not self.compress_input:
            y = y.swapaxes(-3, -2)
        order = self._order
        inverse = sorted(range(len(order)), key=order.__getitem__)
        return y.reshape([self.shape[i] for i in order]).transpose(inverse)

    def canonical(self, matrix: jax.Array) -> jax.Array:
        """``[..., m, n]`` -> ``[..., a, b]`` (and back: it is its own inverse)."""
        return matrix if self.compress_input else matrix.swapaxes(-1, -2)

    def column_energy(self, matrix: jax.Array) -> jax.Array:
        r""":math:`\lVert G_{:,j} \rVert^2` of canonical columns: ``[..., m, n] -> [..., 1, b]``.

        Summed where the matrix stands: XLA would write its transpose out first.
        """
        return column_energy(matrix, -2 if self.compress_input else -1)

    # XLA folds a transposed *operand* into the product but copies a transposed *result*, so both
    # products are spelled out for both orientations instead of transposing.

    def project(self, basis: jax.Array | Directions, matrix: jax.Array) -> jax.Array:
        r"""The coordinates :math:`P^\top G`: ``[*batch, a, r], [*batch, m, n] -> [*batch, r, b]``.

        Accumulated in float32 (or wider), whatever the gradient's dtype.
        """
        spec = "...ra,...ab->...rb" if self.compress_input else "...ra,...ba->...rb"
        accumulate = jnp.promote_types(matrix.dtype, jnp.float32)
        if not isinstance(basis, jax.Array):
            return basis.project(self.canonical(matrix).astype(accumulate))
        # XLA would fold this transpose into the product, which on a CPU takes twice as long for it
        # (three times if the matrix is transposed too); the barrier has the small array copied.
        rows = jax.lax.optimization_barrier(basis.astype(matrix.dtype).swapaxes(-1, -2))
        return jnp.einsum(spec, rows, matrix, preferred_element_type=accumulate)

    def lift(self, basis: jax.Array | Directions, coordinates: jax.Array) -> jax.Array:
        r""":math:`P X` in the matrix's own orientation: ``[*batch, r, b] -> [*batch, m, n]``."""
        if not isinstance(basis, jax.Array):
            return self.canonical(basis.lift(coordinates))
        spec = "...ar,...rb->...ab" if self.compress_input else "...ar,...rb->...ba"
        accumulate = jnp.promote_types(basis.dtype, jnp.float32)
        return jnp.einsum(
            spec, basis, coordinates.astype(basis.dtype), preferred_element_type=accumulate
        )

"""The gradient of one weight matrix while it is inside its subspace."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

Params = Any
"""A pytree of arrays (or of anything with a shape and a dtype)."""


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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Subspace:
    r"""A gradient on its way through the subspace: the update it stands for, not yet computed.

    .. math::

        U = c \left( \alpha P N + s \circ f(G - \kappa P R) \right), \qquad R = P^\top G

    ``low_rank_project`` makes it, each transformation rewrites one field, ``project_back`` turns
    it into the array :math:`U`. Unless a method asks for an :math:`f`, the full-size residual
    :math:`G - \kappa P R` is never formed.

    Attributes:
      matrix: gradient ``[*batch, m, n]``, in the weight's own orientation, as it came.
      usable: whether it is finite, ``[*batch, 1, 1]``; where not, it counts as zero.
      basis: :math:`P`, ``[*batch, a, r]``, or the :class:`fira_jax.basis.Directions` it stands for.
      raw: :math:`R`, the gradient's coordinates, ``[*batch, r, b]``, at least float32, zero where
        the gradient is not usable.
      raw_energy: :math:`\lVert R_{:,j} \rVert^2`, ``[*batch, 1, b]``.
      core: :math:`N`, what the optimizer in the subspace makes of them, ``[*batch, r, b]``; None if
        the update has no part that is lifted from the subspace.
      denominator: what that optimizer divided by, ``[*batch, r, b]``; None if it does not say.
      scale: :math:`\alpha`, weight of the subspace part, scalar.
      step_scale: :math:`c`, correction of the whole step, scalar or ``[*batch, 1, 1]``.
      residual_scale: :math:`s`, ``[*batch, 1, b]``, or None for no residual. One for each entry of
        a direction, ``[*batch, r, b]``, if the basis is :class:`fira_jax.basis.Haar`.
      residual_leak: :math:`\kappa`, scalar: 1 removes the subspace part from the residual exactly;
        None keeps all of it (:math:`\kappa = 0`, at no cost).
      rotation: :math:`P_{new}^\top P_{old}`, ``[*batch, r, r]``, when moments are to be carried
        into a new basis; None otherwise.
      refreshed: whether any basis changed at this step, bool scalar; None with ``rotation``.
      view: how the weight is read as matrices.
      residual_map: :math:`f`, what is done to the entries of the residual, such as ``jnp.sign``;
        None for nothing.
      orthonormal: whether the columns of ``basis`` are orthonormal to float32 precision.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> project = fira_jax.low_rank_project(fira_jax.LowRank(rank=2))
      >>> grads = {"w": jnp.ones((8, 16))}
      >>> node = project.update(grads, project.init(grads))[0]["w"]
      >>> node.basis.shape, node.raw.shape, node.core.shape
      ((8, 2), (2, 16), (2, 16))
    """

    matrix: jax.Array
    usable: jax.Array
    basis: Any  # jax.Array | Directions
    raw: jax.Array
    raw_energy: jax.Array
    core: jax.Array | None
    denominator: jax.Array | None
    scale: jax.Array
    step_scale: jax.Array
    residual_scale: jax.Array | None
    residual_leak: jax.Array | None
    rotation: jax.Array | None
    refreshed: jax.Array | None
    view: MatrixView = dataclasses.field(metadata={"static": True})
    orthonormal: bool = dataclasses.field(metadata={"static": True})
    residual_map: Callable[[jax.Array], jax.Array] | None = dataclasses.field(
        metadata={"static": True}
    )

    @property
    def energy(self) -> jax.Array:
        r""":math:`\lVert G_{:,j} \rVert^2` in canonical orientation, ``[*batch, 1, b]``."""
        return jnp.where(self.usable, self.view.column_energy(self.matrix), 0)

    def replace(self, **changes: Any) -> Subspace:
        """A copy with some fields rewritten."""
        return dataclasses.replace(self, **changes)


def column_energy(x: jax.Array, axis: int = -2) -> jax.Array:
    """Sum of squares along ``axis`` in float32 or wider: ``[..., a, b] -> [..., 1, b]``."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jnp.expand_dims(jnp.sum(jnp.square(wide), axis), -2)


def finite_entries(grad: jax.Array) -> jax.Array:
    """The gradient with zeros where its square would not be finite."""
    wide = grad.astype(jnp.promote_types(grad.dtype, jnp.float32))
    return jnp.where(jnp.isfinite(wide * wide), grad, 0)


def is_leaf(x: Any) -> bool:
    """What the transformations treat as one leaf: a node, or a place that holds nothing."""
    return isinstance(x, Subspace | optax.MaskedNode)


def map_leaves(f: Callable[..., Any], updates: Any, *states: Any) -> Any:
    """Maps ``f(leaf, *state_leaves)`` over arrays and nodes; places masked in any tree stay.

    The trees need the same leaves in the same order, not the same containers: flax.nnx passes a
    ``State`` to ``init`` and plain dicts to ``update``.

    Returns:
      One tree shaped like ``updates`` if there are no ``states``. Otherwise ``f`` returns one value
      for each tree it was given, and so does this: a tuple of trees shaped like the arguments.

    Raises:
      ValueError: the trees do not have equally many leaves.
    """
    leaves, treedef = jax.tree.flatten(updates, is_leaf=is_leaf)
    if not states:
        return jax.tree.unflatten(
            treedef, [x if isinstance(x, optax.MaskedNode) else f(x) for x in leaves]
        )
    flat = [jax.tree.flatten(state, is_leaf=is_leaf) for state in states]
    for column, _ in flat:
        require_same_leaves(leaves, column)
    rows = zip(leaves, *(column for column, _ in flat), strict=True)
    results = [
        row if any(isinstance(x, optax.MaskedNode) for x in row) else f(*row) for row in rows
    ]
    defs = (treedef, *(d for _, d in flat))
    return tuple(jax.tree.unflatten(d, [row[i] for row in results]) for i, d in enumerate(defs))


def require_same_leaves(updates: Sequence[Any], state: Sequence[Any]) -> None:
    """Raises ``ValueError`` unless an update and a state have equally many leaves."""
    if len(updates) != len(state):
        raise ValueError(
            f"the updates have {len(updates)} leaves but the optimizer state was initialised for "
            f"{len(state)}: init and update need the same tree of parameters"
        )


def require_same_shape(
    name: str, needed: tuple[int, ...] | None, found: tuple[int, ...] | None
) -> None:
    """Raises ``ValueError`` unless an update finds the state it needs; a shape of None is none."""
    if needed != found:
        raise ValueError(
            f"{name} needs an optimizer state of shape {needed}, but it was initialised with shape "
            f"{found}: init and update need the same tree of parameters"
        )


def stateless(f: Callable[[Any], Any]) -> optax.GradientTransformationExtraArgs:
    """A transformation that maps the updates and keeps nothing."""

    def update(
        updates: optax.Updates, state: optax.EmptyState, params: Params | None = None, **_: Any
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del params
        return f(updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def unbox(tree: Any) -> Any:
    """Replaces flax.nnx Variables by their values, so that no sharding metadata is inherited.

    A Variable's metadata describes the parameter's axes; on a state of another shape it would
    split the rank.
    """

    def boxed(x: Any) -> bool:
        return hasattr(x, "get_value") and hasattr(x, "get_metadata")

    return jax.tree.map(lambda x: x.get_value() if boxed(x) else x, tree, is_leaf=boxed)


def path_name(path: Sequence[Any]) -> str:
    """A parameter's path as people write it: ``layers/attn/q``."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)

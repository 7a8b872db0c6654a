"""The gradient of one weight matrix while it is inside its subspace."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fira_jax.matrix_view import MatrixView
from fira_jax.norms import column_energy

_WHERE_IT_BELONGS = (
    "put fira_jax.project_back() in front of what takes arrays, and Optax's own transformations "
    "behind it or into fira_jax.in_subspace(low_rank, ...)"
)


class _Told(type):
    """A class whose name says what is wrong where JAX finds it in place of an array.

    An Optax transformation that holds a state compares the tree of updates with that of its state.
    Nothing of ours runs then, but JAX's error prints the class.
    """

    def __repr__(cls) -> str:
        return f"{super().__repr__()} (an update still in its subspace: {_WHERE_IT_BELONGS})"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Subspace(metaclass=_Told):
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
      refreshed: whether this matrix's basis was due to be replaced at this step, bool
        ``[*batch, 1, 1]``.
      word: a number that stands for where the weight stands in the tree, uint32 scalar, for random
        numbers of its own: :func:`fira_jax.random_bits.word` of its path. (The path itself would
        make each weight a program of its own to trace.)
      view: how the weight is read as matrices.
      residual_map: :math:`f`, what is done to the entries of the residual, such as ``jnp.sign``;
        None for nothing.
      limit: what a limiter multiplied the residual (or the step) by, ``[*batch, 1, 1]``; None if
        there was none.
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
    refreshed: jax.Array
    word: jax.Array
    view: MatrixView = dataclasses.field(metadata={"static": True})
    orthonormal: bool = dataclasses.field(metadata={"static": True})
    residual_map: Callable[[jax.Array], jax.Array] | None = dataclasses.field(
        metadata={"static": True}
    )
    limit: jax.Array | None = None

    @property
    def energy(self) -> jax.Array:
        r""":math:`\lVert G_{:,j} \rVert^2` in canonical orientation, ``[*batch, 1, b]``."""
        return jnp.where(self.usable, self.view.column_energy(self.matrix), 0)

    def replace(self, **changes: Any) -> Subspace:
        """A copy with some fields rewritten; the energies follow new coordinates."""
        if "raw" in changes and "raw_energy" not in changes:
            changes["raw_energy"] = column_energy(changes["raw"])
        return dataclasses.replace(self, **changes)

    def require_untouched(self) -> None:
        """Raises ``TypeError`` if the fields were computed with as if each were a gradient.

        That is what an Optax transformation in the middle of the walk does to them.
        """
        if self.usable.dtype != jnp.bool_ or self.word.dtype != jnp.uint32:
            self._not_an_array()

    def _not_an_array(self, *_: Any, **__: Any) -> Any:
        """Whoever takes a node for an array is told what is missing in front of him."""
        raise TypeError(
            f"an update of shape {self.view.shape} is still in its subspace, expected an array: "
            f"{_WHERE_IT_BELONGS}"
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = _not_an_array
    __jax_array__ = __neg__ = __getitem__ = astype = _not_an_array

"""One parameter's gradient as it enters its subspace."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fira_jax.low_rank import LowRank
from fira_jax.matrix_view import MatrixView
from fira_jax.norms import column_energy
from fira_jax.refresh import Rule
from fira_jax.subspace import Subspace


def enter(
    low_rank: LowRank,
    view: MatrixView,
    matrix: jax.Array,
    old: Any,
    new: Any,
    memory: Any,
    due: jax.Array,
    key: jax.Array,
    place: jax.typing.ArrayLike,
) -> tuple[Subspace, Any, Any]:
    """The gradient of one parameter in its subspace, what is stored of that, and the rule's memory.

    Args:
      low_rank: what "low rank" means for this model.
      view: how the parameter is read as matrices.
      matrix: its gradient ``[*batch, m, n]``.
      old: what was stored of its basis.
      new: what is stored after the refresh, if there was one.
      memory: what the refresh rule remembers of it.
      due: whether its basis was to be replaced, bool ``[*batch]``.
      key: for bases that are drawn.
      place: the word of its path.
    """
    kind, rule = low_rank.kind, low_rank.rule
    dtype = low_rank.basis_dtype or matrix.dtype
    basis, before = (
        kind.vectors(stored, view.compressed_size, view.rank, dtype, key) for stored in (new, old)
    )
    raw, energy, usable = _coordinates(view, basis, matrix)
    node = Subspace(
        matrix=matrix,
        usable=usable,
        basis=basis,
        raw=raw,
        raw_energy=energy,
        core=raw,
        denominator=None,
        scale=jnp.asarray(low_rank.scale, raw.dtype),
        step_scale=jnp.ones([], raw.dtype),
        residual_scale=None,
        residual_leak=None,
        rotation=_rotation(low_rank, basis, before, new, old, raw.dtype),
        refreshed=due[..., None, None],
        word=jnp.asarray(place, jnp.uint32),
        view=view,
        # Directions are not rounded to the matrix's dtype before they are applied.
        orthonormal=kind.orthonormal
        and (
            not isinstance(basis, jax.Array)
            or min(jnp.finfo(x.dtype).bits for x in (basis, matrix)) >= 32
        ),
        residual_map=None,
    )
    remembered = _learn(rule, memory, node, before, due, low_rank.update_proj_gap)
    return node, kind.observe(new, node.raw), remembered


def _coordinates(
    view: MatrixView, basis: Any, matrix: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The coordinates, the energy of their columns, and whether the gradient is usable."""
    raw = view.project(basis, matrix)
    # Every entry of a column of G reaches every entry of that column of R, so the small array
    # tells whether the large one is finite (but directions may pick only some entries). The guard
    # itself is left to those who read the large one: a guarded copy would be a full-size temporary.
    energy = column_energy(raw)
    whole = energy if isinstance(basis, jax.Array) else view.column_energy(matrix)
    usable = jnp.isfinite(jnp.sum(whole, axis=-1, keepdims=True))
    return jnp.where(usable, raw, 0), jnp.where(usable, energy, 0), usable


def _learn(rule: Rule, memory: Any, node: Subspace, old: Any, due: jax.Array, gap: int) -> Any:
    """What the rule remembers after this step; where the gradient is not usable, what it did."""
    usable = node.usable[..., 0, 0] & jnp.any(node.raw_energy > 0, axis=(-2, -1))

    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        where = usable.reshape(*usable.shape, *(1,) * (old.ndim - usable.ndim))
        return jnp.where(where, new.astype(old.dtype), old)

    return jax.tree.map(choose, rule.update(memory, node, old, due, gap), memory)


def _rotation(
    low_rank: LowRank, basis: Any, before: Any, new: Any, old: Any, dtype: jax.typing.DTypeLike
) -> jax.Array | None:
    """How moments turn into the new basis, if they are to be carried."""
    if low_rank.moments != "carry":
        return None
    turn = low_rank.kind.turn(new, old)
    if turn is None:
        return jnp.einsum("...ar,...aq->...rq", basis, before, preferred_element_type=dtype)
    return turn.astype(dtype)

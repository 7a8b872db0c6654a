"""Any Optax transformation, inside the subspace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import optax

from fira_jax.dtypes import state_dtype, steady
from fira_jax.low_rank import LowRank
from fira_jax.sharding.explicit import on_any_mesh
from fira_jax.subspace import Subspace
from fira_jax.transforms.coordinates import coordinates_like
from fira_jax.transforms.turning import Turn, turn_state
from fira_jax.trees import Params, is_leaf, map_leaves, unbox


class InSubspaceState(NamedTuple):
    """State of :func:`in_subspace` with another optimizer elsewhere; else it is the inner one's.

    Attributes:
      inner: state of the transformation in the subspace.
      elsewhere: state of the one of all other parameters.
    """

    inner: Any
    elsewhere: Any


@on_any_mesh
def in_subspace(
    low_rank: LowRank,
    inner: optax.GradientTransformation,
    elsewhere: optax.GradientTransformation | None = None,
    *,
    turned: Callable[[Any, Turn], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Lifts any Optax transformation into the subspace.

    ``inner`` sees each projected gradient as its coordinates ``[*batch, r, b]`` in the
    parameter's dtype (float32 if that is float16), other gradients as they are, and parameters
    projected likewise. Its state keeps its dtypes; with ``low_rank.moments="carry"`` it turns with
    the basis.

    Args:
      low_rank: what "low rank" means for this model.
      inner: the transformation, such as ``optax.scale_by_lion()``.
      elsewhere: the one of parameters that are not projected; None for ``inner``. Each of the two
        sees ``optax.MaskedNode`` at the places of the other.
      turned: ``(state, turn) -> state``, how ``inner``'s state turns with the basis, see
        :class:`fira_jax.transforms.Turn`. Known if None for states of Optax (momentum, averages,
        Lion, Adam and its kin, AdEMAMix, and chains of them), and for those with a method of this
        name.

    Raises:
      ValueError: ``low_rank.moments`` is ``"reset"``; or at ``init``, how the state turns is not
        known.

    Example:
      >>> import fira_jax, jax.numpy as jnp, optax
      >>> low_rank = fira_jax.LowRank(rank=2, moments="carry")
      >>> tx = optax.chain(
      ...     fira_jax.low_rank_project(low_rank),
      ...     fira_jax.in_subspace(low_rank, optax.scale_by_lion(), optax.scale_by_adam()),
      ...     fira_jax.project_back(),
      ...     optax.scale_by_learning_rate(1e-3),
      ... )
      >>> state = tx.init({"w": jnp.ones((8, 16)), "b": jnp.ones(16)})
      >>> state[1].inner.mu["w"].shape, state[1].elsewhere.mu["b"].shape
      ((2, 16), (16,))
    """
    if low_rank.moments == "reset":
        raise ValueError(
            "moments='reset' needs fira_jax.scale_by_adam_in_subspace: in_subspace cannot tell an "
            "arbitrary transformation to count anew"
        )
    inner = steady(inner)
    other = None if elsewhere is None else steady(elsewhere)
    turn = turned or turn_state

    def init(params: Params) -> optax.OptState:
        start = coordinates_like(low_rank, params, None)
        if other is None:
            state = whole = inner.init(start)
        else:
            plain = jax.tree.leaves(low_rank.elsewhere(params), is_leaf=is_leaf)
            inside, outside = _split(start, [x is False for x in plain])
            state = inner.init(inside)
            whole = InSubspaceState(state, other.init(outside))
        if low_rank.moments == "carry":
            turn(state, Turn())  # or an error, before anything is computed
        return whole

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        grads = map_leaves(_coordinates, unbox(updates))
        if params is not None:
            params = map_leaves(_project, unbox(updates), unbox(params))[1]
        inner_state = state if other is None else state.inner
        if low_rank.moments == "carry":
            inner_state = turn(inner_state, Turn(updates))
        if other is None:
            cores, state = inner.update(grads, inner_state, params, **extra_args)
        else:
            nodes = jax.tree.leaves(updates, is_leaf=is_leaf)
            where = [isinstance(x, Subspace) for x in nodes]
            (grads, plain), (seen, rest) = _split(grads, where), _split(params, where)
            cores, inner_state = inner.update(grads, inner_state, seen, **extra_args)
            others, other_state = other.update(plain, state.elsewhere, rest, **extra_args)
            cores, state = _join(cores, others), InSubspaceState(inner_state, other_state)
        return map_leaves(_put_back, updates, cores)[0], state

    return optax.GradientTransformationExtraArgs(init, update)


def _coordinates(leaf: Any) -> Any:
    if isinstance(leaf, Subspace):
        return leaf.raw.astype(state_dtype(leaf.matrix.dtype))
    return leaf if leaf.size else optax.MaskedNode()


def _project(leaf: Any, param: Any) -> tuple[Any, Any]:
    if not isinstance(leaf, Subspace):
        return leaf, param if leaf.size else optax.MaskedNode()
    seen = leaf.view.project(leaf.basis, leaf.view.to_matrix(param))
    return leaf, seen.astype(state_dtype(param.dtype))


def _put_back(leaf: Any, core: Any) -> tuple[Any, Any]:
    if not isinstance(leaf, Subspace):
        return core, core
    return leaf.replace(core=core.astype(leaf.raw.dtype)), core


def _split(tree: Any, where: Sequence[bool]) -> tuple[Any, Any]:
    """The leaves at some places of a tree, and those at the others, as two trees."""
    if tree is None:
        return None, None
    leaves, treedef = jax.tree.flatten(tree, is_leaf=is_leaf)
    nothing = optax.MaskedNode()
    pairs = [(x, nothing) if here else (nothing, x) for x, here in zip(leaves, where, strict=True)]
    inside, outside = (jax.tree.unflatten(treedef, [pair[i] for pair in pairs]) for i in (0, 1))
    return inside, outside


def _join(inside: Any, outside: Any) -> Any:
    """The tree that was split."""
    return jax.tree.map(
        lambda x, y: y if isinstance(x, optax.MaskedNode) else x, inside, outside, is_leaf=is_leaf
    )

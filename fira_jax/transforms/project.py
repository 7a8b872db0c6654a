"""Where a gradient enters its subspace and where the update leaves it."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fira_jax.advice import warn_if_little_is_saved, warn_if_nothing_is_projected
from fira_jax.basis import Basis
from fira_jax.low_rank import LowRank
from fira_jax.matrix_view import MatrixView
from fira_jax.plan import Leaf
from fira_jax.random_bits import key_of, word
from fira_jax.refresh import Rule
from fira_jax.refresh.replace import replace_bases
from fira_jax.sharding.explicit import on_any_mesh
from fira_jax.subspace import Subspace
from fira_jax.transforms.entering import enter
from fira_jax.transforms.normalize import Normalization
from fira_jax.transforms.residual import residual
from fira_jax.transforms.state_parts import put_together, take_apart
from fira_jax.trees import (
    Params,
    finite_entries,
    is_leaf,
    map_leaves,
    require_same_leaves,
    stateless,
    traced_once,
)
from fira_jax.whole_matrices import on_whole_matrices


class LowRankProjectState(NamedTuple):
    """State of :func:`low_rank_project`.

    Attributes:
      count: steps taken, int32 scalar.
      bases: what the basis stores for each projected parameter, an array or a pytree of them (for
        SVD ``[*batch, a, r]``); ``optax.MaskedNode`` for the others.
      memory: what the refresh rule remembers of each, likewise; ``()`` if it needs no memory.
    """

    count: jax.Array  # type: ignore[assignment]  # as Optax names it
    bases: Any
    memory: Any = ()

    @property
    def holds_bases(self) -> tuple[str, ...]:
        """The fields in which bases stand: `state_owners` knows them by the type of the state."""
        return ("bases",)


@on_any_mesh
def low_rank_project(low_rank: LowRank) -> optax.GradientTransformationExtraArgs:
    r"""Takes each matrix's gradient into its subspace, :math:`R = P^\top G`.

    Projected gradients leave as :class:`fira_jax.Subspace` nodes, the others as arrays, so the
    transformations that follow serve the whole model. Every ``update_proj_gap`` steps, starting
    with the first, :math:`P` is found anew from the gradient of that step, or from the arrays of
    the gradients' shapes that ``update`` is given as ``basis_from``.

    A matrix whose gradient is not finite (or so large that its square is not) counts as having
    a zero gradient at that step; in a parameter that is not projected each such entry does. Its
    basis, moments and limiter stay finite and later steps are unaffected. Before the first
    usable gradient the basis consists of coordinate directions. In derivatives through an update
    bases count as constants.

    Args:
      low_rank: what "low rank" means for this model.

    Returns:
      A gradient transformation; follow it with :func:`fira_jax.project_back`.

    Raises:
      ValueError: at ``init``, naming the parameter, if the dimension numbers do not fit it or it is
        not real floating point; or if the refresh rule remembers bases and this kind stores none.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> project = fira_jax.low_rank_project(fira_jax.LowRank(rank=2))
      >>> params = {"w": jnp.ones((8, 16)), "b": jnp.ones(16)}
      >>> grads, _ = project.update(params, project.init(params))
      >>> grads["w"].raw.shape, grads["b"].shape
      ((2, 16), (16,))

    References:
      Zhao et al., `GaLore <https://arxiv.org/abs/2403.03507>`_, 2024, algorithm 1. As in the
      released code the first basis comes from the first gradient. Unlike it, basis vectors have
      canonical signs, so that trajectories do not depend on the linear-algebra library.
    """
    basis, rule, gap = low_rank.kind, low_rank.rule, low_rank.update_proj_gap

    def init(params: Params) -> LowRankProjectState:
        plan = low_rank.leaves(params)
        warn_if_nothing_is_projected(plan)
        warn_if_little_is_saved(plan, basis, chosen=low_rank.weight_dimension_numbers is not None)
        if rule.judges and not basis.stores():
            raise ValueError(f"refresh={rule!r} needs a basis that is stored, got {basis!r}")

        def stored(view: MatrixView, dtype: Any) -> Any:
            one = basis.init(view.compressed_size, view.rank, low_rank.basis_dtype or dtype)
            return jax.tree.map(lambda x: jnp.tile(x, (*view.batch_shape, *(1,) * x.ndim)), one)

        memory = low_rank.for_each_matrix(params, rule.init)
        return LowRankProjectState(
            jnp.zeros([], jnp.int32),
            low_rank.for_each_matrix(params, stored),
            memory if rule.remembers else (),
        )

    def update(
        updates: optax.Updates,
        state: LowRankProjectState,
        params: Params | None = None,
        *,
        basis_from: Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, LowRankProjectState]:
        del params, extra_args
        _require_own_state(state, rule)
        plan = low_rank.leaves(updates)
        leaves, treedef = jax.tree.flatten(updates, is_leaf=is_leaf)
        stored = take_apart(state.bases, plan, lambda view: _shapes_stored(basis, view))
        memory = _memories(state, plan, rule)
        projected = {i: leaf.view for i, leaf in enumerate(plan) if leaf and leaf.view}
        views = list(projected.values())
        matrices = [view.to_matrix(leaves[i]) for i, view in projected.items()]
        sources = matrices
        if basis_from is not None:
            arrays = jax.tree.leaves(basis_from, is_leaf=is_leaf)
            require_same_leaves(leaves, arrays)
            sources = [view.to_matrix(arrays[i]) for i, view in projected.items()]
        due = [
            rule.due(memory[i], state.count, gap, index, total)
            for i, (index, total) in zip(projected, _numbered(views), strict=True)
        ]
        key = key_of(low_rank.seed, state.count // gap)
        # A basis counts as constant in derivatives through an update: those of singular vectors
        # are infinite where two singular values meet.
        known = jax.lax.stop_gradient((sources, [stored[i] for i in projected]))
        found = replace_bases(basis, views, *known, due, key)

        leaves = [x if i in projected else _finite(x) for i, x in enumerate(leaves)]
        enter_one = traced_once(functools.partial(enter, low_rank), matrices, static_argnums=0)
        for i, matrix, new, is_due in zip(projected, matrices, found, due, strict=True):
            place = word(plan[i].path)  # type: ignore[union-attr]
            leaves[i], stored[i], memory[i] = enter_one(
                projected[i], matrix, stored[i], new, memory[i], is_due, key, place
            )
        new_state = LowRankProjectState(
            optax.safe_increment(state.count),
            put_together(state.bases, stored),
            put_together(state.memory, memory),
        )
        return jax.tree.unflatten(treedef, leaves), new_state

    return optax.GradientTransformationExtraArgs(init, update)


def project_back(
    normalize: Normalization | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Turns each node into the full-size update it stands for.

    .. math::

        U = c \left( P (\alpha N - \kappa\, s \circ R) + s \circ G \right)

    One product, whatever the method: the residual is expanded instead of formed (unless a method
    does something to its entries, which takes a second product). The only place where an array of
    the weight's size is made. Plain arrays pass unchanged. An ``observe`` among the extra arguments
    of ``update`` is called with what comes in, as :func:`fira_jax.measured` needs it.

    Args:
      normalize: what is done last to the whole update of each matrix, ``[*batch, m, n]`` in
        float32 or wider, such as :func:`fira_jax.transforms.orthogonal` ``()``; None for nothing.

    Example:
      >>> import fira_jax, jax.numpy as jnp, optax
      >>> tx = optax.chain(
      ...     fira_jax.low_rank_project(fira_jax.LowRank(rank=1, scale=1.0)),
      ...     fira_jax.project_back(),
      ... )
      >>> grads = {"w": jnp.outer(jnp.arange(4.0), jnp.arange(8.0))}
      >>> updates, _ = tx.update(grads, tx.init(grads))
      >>> bool(jnp.allclose(updates["w"], grads["w"], atol=1e-4))  # the gradient has rank 1
      True
    """
    lift = _lift_all(normalize)

    def update(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: Params | None = None,
        *,
        observe: Callable[[Any], None] | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del extra_args
        if observe is not None:
            observe(updates)
        return lift.update(updates, state, params)

    return optax.GradientTransformationExtraArgs(lift.init, update)


@on_any_mesh
def _lift_all(normalize: Normalization | None) -> optax.GradientTransformationExtraArgs:
    def lift(node: Any) -> Any:
        if not isinstance(node, Subspace):
            return node
        parts, inside = [], []
        if node.core is not None:
            inside.append(node.step_scale * node.scale * node.core)
        if node.residual_scale is not None:
            s = node.step_scale * node.residual_scale
            if node.residual_map is not None:
                parts.append(node.view.canonical(s) * node.residual_map(residual(node)))
            else:
                if node.residual_leak is not None:
                    inside.append(-node.residual_leak * s * node.raw)
                if s.shape[-2] > 1:
                    s = node.basis.spread(s)
                # Written in the weight's own orientation: a transposed result would be copied.
                parts.append(jnp.where(node.usable, node.view.canonical(s) * node.matrix, 0))
        if inside:
            parts.append(node.view.lift(node.basis, functools.reduce(jnp.add, inside)))
        whole = functools.reduce(jnp.add, parts)
        return whole if normalize is None else whole.astype(node.raw.dtype)

    def lift_all(updates: optax.Updates) -> optax.Updates:
        leaves, treedef = jax.tree.flatten(map_leaves(lift, updates), is_leaf=is_leaf)
        before = jax.tree.leaves(updates, is_leaf=is_leaf)
        nodes = {i: x for i, x in enumerate(before) if isinstance(x, Subspace)}
        wholes = [leaves[i] for i in nodes]
        if normalize is not None:
            wholes = on_whole_matrices(normalize, wholes)
        for (i, node), whole in zip(nodes.items(), wholes, strict=True):
            leaves[i] = node.view.from_matrix(whole.astype(node.matrix.dtype))
        return jax.tree.unflatten(treedef, leaves)

    return stateless(lift_all)


def _finite(leaf: Any) -> Any:
    """What is not projected, without entries that are not finite."""
    return leaf if isinstance(leaf, optax.MaskedNode) else finite_entries(leaf)


def _require_own_state(state: Any, rule: Rule) -> None:
    """Raises an error that says so if the state is that of something else."""
    if not isinstance(state, LowRankProjectState):
        raise TypeError(
            f"low_rank_project needs a LowRankProjectState, got {type(state)}: restore a "
            "checkpoint into the structure of tx.init(params)"
        )
    needed = rule.remembers and not _is_nothing(state.bases)  # as they are of no parameters
    if _is_nothing(state.memory) == needed:
        raise ValueError(
            f"the optimizer state was initialized with another rule than refresh={rule!r}, which "
            f"{'needs a memory that it lacks' if needed else 'has no use for the memory it holds'}"
        )


def _is_nothing(tree: Any) -> bool:
    """Whether this is ``()``; a parameter that is not projected is an empty *named* tuple."""
    return type(tree) is tuple and not tree


def _memories(state: LowRankProjectState, plan: Sequence[Leaf | None], rule: Rule) -> list[Any]:
    """What the rule remembers of each parameter."""
    if not rule.remembers:
        return [()] * len(plan)
    return take_apart(state.memory, plan, lambda view: _shapes_remembered(rule, view))


def _numbered(views: Sequence[MatrixView]) -> list[tuple[np.ndarray, int]]:
    """Which of the model's matrices each parameter holds, ``[*batch]``, and how many there are."""
    counts = [math.prod(view.batch_shape) for view in views]
    ends = list(itertools.accumulate(counts, initial=0))
    return [
        (np.arange(start, start + count).reshape(view.batch_shape), ends[-1])
        for start, count, view in zip(ends, counts, views, strict=False)
    ]


@functools.cache
def _shapes_stored(basis: Basis, view: MatrixView | None) -> Any:
    """The shapes of what is stored for one parameter; masked if nothing is."""
    if view is None or not basis.stores():
        return optax.MaskedNode()
    one = jax.eval_shape(lambda: basis.init(view.compressed_size, view.rank, jnp.float32))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*view.batch_shape, *x.shape), x.dtype), one)


@functools.cache
def _shapes_remembered(rule: Rule, view: MatrixView | None) -> Any:
    """The shapes of what a rule remembers of one parameter; masked if it is not projected."""
    if view is None:
        return optax.MaskedNode()
    return jax.eval_shape(lambda: rule.init(view, jnp.float32))

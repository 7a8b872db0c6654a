"""Trees of parameters, gradients and nodes, whoever made them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fira_jax.subspace import Subspace

Params = Any
"""A pytree of arrays (or of anything with a shape and a dtype)."""


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
      TypeError: something has computed with the inside of a node.
    """
    leaves, treedef = jax.tree.flatten(updates, is_leaf=is_leaf)
    for leaf in leaves:
        if isinstance(leaf, Subspace):
            leaf.require_untouched()
    f = traced_once(f, leaves)
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


def traced_once(f: Callable[..., Any], leaves: Sequence[Any], **options: Any) -> Callable[..., Any]:
    """``f``, traced and lowered once for all leaves that are alike if they are being traced.

    A model of separate matrices has hundreds of a few kinds. Each is then one call in the traced
    program; compilers put the calls in line.

    Args:
      f: from a leaf, and what else belongs to it.
      leaves: that it will be called with.
      **options: of ``jax.jit``, such as which arguments are static.
    """
    traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(leaves))
    return jax.jit(f, **options) if traced else f


def require_same_leaves(updates: Sequence[Any], state: Sequence[Any]) -> None:
    """Raises ``ValueError`` unless an update and a state have equally many leaves."""
    if len(updates) != len(state):
        raise ValueError(
            f"the updates have {len(updates)} leaves but the optimizer state was initialized for "
            f"{len(state)}: init and update need the same tree of parameters"
        )


def require_same_shape(
    name: str, needed: tuple[int, ...] | None, found: tuple[int, ...] | None
) -> None:
    """Raises ``ValueError`` unless an update finds the state it needs; a shape of None is none."""
    if needed != found:
        raise ValueError(
            f"{name} needs an optimizer state of shape {needed}, but it was initialized with shape "
            f"{found}: init and update need the same tree of parameters, and the same rank, side "
            "and kind of basis"
        )


def stateless(f: Callable[[Any], Any]) -> optax.GradientTransformationExtraArgs:
    """A transformation that maps the updates and keeps nothing."""

    def update(
        updates: optax.Updates, state: optax.EmptyState, params: Params | None = None, **_: Any
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del params
        return f(updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def on_nodes(f: Callable[[Subspace], Subspace]) -> optax.GradientTransformationExtraArgs:
    """A transformation that rewrites each node and keeps nothing; plain arrays pass."""

    def one(leaf: Any) -> Any:
        return f(leaf) if isinstance(leaf, Subspace) else leaf

    return stateless(lambda updates: map_leaves(one, updates))


def on_nodes_with_state(
    name: str, init: Callable[[Params], Any], step: Callable[..., tuple[Any, ...]]
) -> optax.GradientTransformationExtraArgs:
    """The same with a state: a named tuple of trees, masked for parameters not projected.

    Args:
      name: of the transformation, for errors.
      init: from parameters to the state.
      step: ``(node, *entries) -> (node, *entries)`` for each node, with its entry of each tree.

    Raises:
      ValueError: at ``update``, something that has a state did not come as a node.
    """

    def update(
        updates: optax.Updates, state: Any, params: Params | None = None, **_: Any
    ) -> tuple[optax.Updates, Any]:
        del params

        def one(node: Any, *entries: Any) -> tuple[Any, ...]:
            require_node(name, node)
            return step(node, *entries)

        updates, *entries = map_leaves(one, updates, *state)
        return updates, type(state)(*entries)

    return optax.GradientTransformationExtraArgs(init, update)


def require_node(name: str, leaf: Any) -> None:
    """Raises ``ValueError`` unless a gradient that should be in its subspace is."""
    if not isinstance(leaf, Subspace):
        raise ValueError(
            f"{name} got a gradient of shape {leaf.shape} that is not in its subspace: put "
            "fira_jax.low_rank_project(low_rank) before it in the chain, with the same low_rank, "
            "and fira_jax.project_back() after it"
        )


def unbox(tree: Any) -> Any:
    """Replaces flax.nnx Variables by their values, so that no sharding metadata is inherited.

    A Variable's metadata describes the parameter's axes; on a state of another shape it would
    split the rank.
    """

    def boxed(x: Any) -> bool:
        return hasattr(x, "get_metadata") and hasattr(x, "set_metadata")

    def value(x: Any) -> Any:
        if not boxed(x):
            return x
        return x.get_value() if hasattr(x, "get_value") else x.value  # as Flax 0.12.0 has it

    return jax.tree.map(value, tree, is_leaf=boxed)


def path_name(path: Sequence[Any]) -> str:
    """A parameter's path as people write it: ``layers/attn/q``."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)

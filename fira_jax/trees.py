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

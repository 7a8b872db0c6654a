"""Which parameter each array of an optimizer's state belongs to."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import optax

from fira_jax.plan import Leaf, recording
from fira_jax.trees import Params, is_leaf, path_name, unbox


class Owned(NamedTuple):
    """One array of the state.

    Attributes:
      keys: names on the way to it, such as ``("0", "bases", "layers", "attn", "q")``.
      array: its shape and dtype.
      owner: the parameter it belongs to, or None for what all share, such as counters.
    """

    keys: tuple[str, ...]
    array: jax.ShapeDtypeStruct
    owner: Leaf | None


def owned_state(
    tx: optax.GradientTransformation, params: Params
) -> tuple[list[Leaf], list[Owned], Any]:
    """What ``tx`` decides for every parameter and which state it would keep, without making any.

    Sees through every wrapper, since it only relies on two things: what each ``LowRank`` decides
    while ``tx.init`` is traced, and that the state of a parameter stands below whatever keeps it
    at the same path as the parameter in its tree, or, if it has several parts, below that path.

    Args:
      tx: a transformation.
      params: parameters, arrays or abstract.

    Returns:
      The parameters in order, the arrays of the state in order, and the state's tree structure.
    """
    params = unbox(params)
    with recording() as record:
        # A function of its own each time: JAX would not trace the same one twice.
        state = unbox(jax.eval_shape(lambda params: tx.init(params), params))  # noqa: PLW0108
    decided: dict[str, Leaf] = {}
    for leaf in record:  # a parameter that one of several LowRanks projects is projected
        if leaf.view is not None or leaf.path not in decided:
            decided[leaf.path] = leaf

    parameters: dict[tuple[str, ...], Leaf] = {}
    for path, x in jax.tree_util.tree_flatten_with_path(params, is_leaf=is_leaf)[0]:
        if hasattr(x, "shape"):
            name = path_name(path)
            undecided = Leaf(name, tuple(x.shape), x.dtype, None)
            parameters[_keys(path)] = decided.get(name, undecided)

    def owner(keys: tuple[str, ...], array: Any) -> Leaf | None:
        for end in range(len(keys), 0, -1):
            for start in range(end):
                # The counter of a chain's member must not pass for a part of a list's parameter.
                counter = end < len(keys) and start == array.ndim == 0
                if keys[start:end] in parameters and not counter:
                    return parameters[keys[start:end]]
        # The whole tree may be one array, whose path is empty: then scalars are counters.
        return parameters.get(()) if array.ndim else None

    flat, treedef = jax.tree_util.tree_flatten_with_path(state)
    owned = [Owned(_keys(path), x, owner(_keys(path), x)) for path, x in flat]
    return list(parameters.values()), owned, treedef


def _keys(path: Any) -> tuple[str, ...]:
    return tuple(path_name([key]) for key in path)

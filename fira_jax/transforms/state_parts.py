"""A tree of the state, taken apart into the part of each parameter and put together again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from fira_jax.matrix_view import MatrixView
from fira_jax.plan import Leaf
from fira_jax.trees import is_leaf, require_same_leaves, require_same_shape


def take_apart(
    tree: Any, plan: Sequence[Leaf | None], expect: Callable[[MatrixView | None], Any]
) -> list[Any]:
    """Takes a tree of the state apart into the part of each parameter, an array or a pytree.

    Args:
      tree: a tree like the parameters, with such a part, or a masked place, for each.
      plan: what will happen to each parameter.
      expect: the shapes of the part of a parameter that is read in this way.

    Raises:
      ValueError: the arrays are not those that these parameters need.
    """
    arrays = jax.tree.leaves(tree, is_leaf=is_leaf)
    expected = [
        jax.tree.flatten(expect(leaf.view if leaf else None), is_leaf=is_leaf) for leaf in plan
    ]
    require_same_leaves([x for parts, _ in expected for x in parts], arrays)
    remaining, found = iter(arrays), []
    for leaf, (parts, treedef) in zip(plan, expected, strict=True):
        ours = list(itertools.islice(remaining, len(parts)))
        for part, x in zip(parts if leaf else (), ours, strict=False):
            name = f"the update of parameter '{leaf.path}' with shape {leaf.shape}"  # type: ignore[union-attr]
            require_same_shape(name, *(getattr(y, "shape", None) for y in (part, x)))
        found.append(jax.tree.unflatten(treedef, ours))
    return found


def put_together(like: Any, parts: Sequence[Any]) -> Any:
    """A tree of the structure of ``like`` from the part of each parameter."""
    structure = jax.tree.structure(like, is_leaf=is_leaf)
    return jax.tree.unflatten(structure, jax.tree.leaves(list(parts), is_leaf=is_leaf))

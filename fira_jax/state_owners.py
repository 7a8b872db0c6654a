"""Which parameter each array of an optimizer's state belongs to."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fira_jax.matrix_view import MatrixView
from fira_jax.plan import Decision, Leaf, recording
from fira_jax.trees import Params, is_leaf, path_name, unbox


class Owned(NamedTuple):
    """One array of the state.

    Attributes:
      path: where it stands in the state, such as ``0/bases/layers/attn/q``.
      array: its shape and dtype.
      owner: the parameter it belongs to, or None for what all share, such as counters.
      basis: whether it is (a part of) what is stored of the parameter's basis.
    """

    path: str
    array: jax.ShapeDtypeStruct
    owner: Leaf | None
    basis: bool


def owned_state(
    tx: optax.GradientTransformation, params: Params
) -> tuple[list[Leaf], list[Owned], Any]:
    """What ``tx`` decides for every parameter and which state it would keep, without making any.

    Sees through every wrapper, since it relies on two things only: what is decided while
    ``tx.init`` is traced, with jit disabled, so that it runs however often it ran before; and that
    the state of all parameters stands in the same tree as the parameters. A state that keeps bases
    says so by its type.

    Args:
      tx: a transformation.
      params: parameters, arrays or abstract.

    Returns:
      The parameters in order, the arrays of the state in order, and the state's tree structure.

    Raises:
      RuntimeError: ``tx.init`` keeps bases and hides what it decided, as a compiled function would.
    """
    params = unbox(params)
    with recording() as decisions, jax.disable_jit():
        # A function of its own each time: JAX would not trace the same one twice.
        state = unbox(jax.eval_shape(lambda params: tx.init(params), params))  # noqa: PLW0108

    flat, structure = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_leaf)
    shapes = {path: x for path, x in flat if hasattr(x, "shape")}
    views = _views(shapes, decisions)
    leaves = {
        path: Leaf(path, tuple(x.shape), x.dtype, views.get(path)) for path, x in shapes.items()
    }
    trees = [_Tree(structure, [path for path, _ in flat], [leaves.get(path) for path, _ in flat])]
    for decision in decisions:
        paths = [leaf.keys if leaf else None for leaf in decision.leaves]
        owners = [None if x is None else leaves.get(_outside(x, shapes)) for x in paths]
        trees.append(_Tree(decision.structure, paths, owners))

    claims: dict[Any, tuple[Leaf, bool]] = {}
    _claim(state, (), trees, claims, basis=False)
    arrays, treedef = jax.tree_util.tree_flatten_with_path(state)
    owned = [Owned(path_name(path), x, *claims.get(path, (None, False))) for path, x in arrays]
    if not decisions and any(hasattr(node, "holds_bases") for node in _nodes(state)):
        raise RuntimeError(
            "this transformation's init keeps what it decided from being seen, as a function does "
            "that was compiled ahead of time; call this with the transformation itself"
        )
    return list(leaves.values()), owned, treedef


class _Tree(NamedTuple):
    """A tree of parameters as some transformation sees it.

    Attributes:
      structure: of the tree.
      paths: of its leaves; None at masked places.
      owners: the parameters that they are.
    """

    structure: Any
    paths: Sequence[Any]
    owners: Sequence[Leaf | None]


def _views(shapes: dict[Any, Any], decisions: Sequence[Decision]) -> dict[Any, MatrixView]:
    """How each parameter is read as matrices, if any of the decisions takes it as such."""
    views: dict[Any, MatrixView] = {}
    for leaf in itertools.chain.from_iterable(decision.leaves for decision in decisions):
        if leaf is not None and leaf.view is not None:
            path = _outside(leaf.keys, shapes)
            if path is not None:
                views.setdefault(path, _mapped(leaf.view, tuple(shapes[path].shape)))
    return views


def _outside(path: Any, paths: Iterable[Any]) -> Any:
    """The parameter that a wrapper shows at ``path``: there, or further down outside of it."""
    if path in paths:
        return path
    return next((outer for outer in paths if outer[len(outer) - len(path) :] == path), None)


def _mapped(view: MatrixView, shape: tuple[int, ...]) -> MatrixView:
    """The view of a whole array of which ``jax.vmap`` showed ``init`` one slice."""
    extra = len(shape) - len(view.shape)
    if extra == 0 or shape[extra:] != view.shape:
        return view
    batch, inputs, outputs = (
        tuple(i + extra for i in axes)
        for axes in (view.batch_axes, view.input_axes, view.output_axes)
    )
    return dataclasses.replace(
        view,
        shape=shape,
        batch_axes=(*range(extra), *batch),
        input_axes=inputs,
        output_axes=outputs,
    )


def _claim(
    node: Any,
    path: tuple[Any, ...],
    trees: Sequence[_Tree],
    claims: dict[Any, tuple[Leaf, bool]],
    *,
    basis: bool,
) -> None:
    """Gives every array below a place where a tree of parameters stands to its parameter.

    The deepest such place counts.
    """
    children = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)[0]
    for (*key,), child in children:
        if key:
            holds = getattr(key[0], "name", None) in getattr(node, "holds_bases", ())
            _claim(child, (*path, *key), trees, claims, basis=basis or holds)
    for tree in trees:
        try:
            parts = tree.structure.flatten_up_to(node)
        except (TypeError, ValueError):  # another tree
            continue
        for inside, owner, part in zip(tree.paths, tree.owners, parts, strict=True):
            if owner is None:
                continue
            for below, x in jax.tree_util.tree_flatten_with_path(part)[0]:
                # A chain's state is a tuple, too, and the whole tree may be one array: what cannot
                # be told from a counter then is one.
                ambiguous = type(node) is tuple or not inside
                integer = x.ndim == 0 and jnp.issubdtype(x.dtype, jnp.integer)
                counter = ambiguous and integer and owner.shape != ()
                if not counter:
                    claims.setdefault((*path, *inside, *below), (owner, basis))


def _nodes(state: Any) -> Iterator[Any]:
    """Everything in a state that is not an array, from the outside in."""
    for child in jax.tree.leaves(state, is_leaf=lambda x: x is not state):
        if child is not state:
            yield from _nodes(child)
    if not hasattr(state, "dtype"):
        yield state

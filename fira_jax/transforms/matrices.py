"""Methods without a subspace: the whole gradient of each weight matrix goes through them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fira_jax.advice import warn_if_nothing_is_projected
from fira_jax.dtypes import steady
from fira_jax.matrix_view import MatrixView
from fira_jax.plan import Leaf, decide
from fira_jax.trees import Params, finite_entries, is_leaf, require_same_leaves, unbox


class OnMatricesState(NamedTuple):
    """State of :func:`on_matrices`.

    Attributes:
      matrices: state of the transformation that sees the matrices.
      rest: state of the one that sees all other parameters.
    """

    matrices: Any
    rest: Any


def on_matrices(
    inner: optax.GradientTransformation,
    rest: optax.GradientTransformation,
    weight_dimension_numbers: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Gives weight matrices to one transformation and all other parameters to another.

    ``inner`` sees each chosen gradient as a stack of matrices ``[*batch, m, n]`` that map ``m``
    inputs to ``n`` outputs, whatever the parameter's shape, and parameters likewise. Each of the
    two sees ``optax.MaskedNode`` at the places of the other. A matrix whose gradient is not finite
    counts as having a zero gradient; in other parameters each such entry does.

    Args:
      inner: for the matrices.
      rest: for vectors, scalars and the matrices left alone.
      weight_dimension_numbers: which parameters are matrices, see :class:`fira_jax.LowRank`.

    Raises:
      ValueError: at ``init``, naming the parameter, if the dimension numbers do not fit it or it is
        not real floating point.

    Example:
      >>> import fira_jax, jax.numpy as jnp, optax
      >>> tx = fira_jax.on_matrices(optax.scale_by_sign(), optax.scale_by_adam())
      >>> state = tx.init({"w": jnp.ones((8, 16)), "b": jnp.ones(16)})
      >>> state.rest.mu["b"].shape, state.rest.mu["w"]
      ((16,), MaskedNode())
    """
    inner, rest = steady(inner), steady(rest)

    def init(params: Params) -> OnMatricesState:
        plan = decide(params, weight_dimension_numbers, "short", rank=0)
        warn_if_nothing_is_projected(plan)

        def blank(view: MatrixView, x: Any) -> jax.Array:
            return jnp.zeros((*view.batch_shape, *view.matrix_shape), x.dtype)

        matrices, others = _split(params, plan, blank, lambda x: x)
        return OnMatricesState(inner.init(matrices), rest.init(others))

    def update(
        updates: optax.Updates,
        state: OnMatricesState,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, OnMatricesState]:
        plan = decide(updates, weight_dimension_numbers, "short", rank=0)
        matrices, others = _split(updates, plan, _usable_matrix, finite_entries)
        weights, other_weights = None, None
        if params is not None:
            weights, other_weights = _split(params, plan, MatrixView.to_matrix, lambda x: x)
        matrices, matrices_state = inner.update(matrices, state.matrices, weights, **extra_args)
        others, rest_state = rest.update(others, state.rest, other_weights, **extra_args)

        def join(leaf: Leaf | None, x: Any, matrix: Any, other: Any) -> Any:
            if leaf and leaf.view:
                return leaf.view.from_matrix(matrix).astype(x.dtype)
            return x if isinstance(other, optax.MaskedNode) else other

        leaves, treedef = jax.tree.flatten(updates, is_leaf=is_leaf)
        parts = (jax.tree.leaves(x, is_leaf=is_leaf) for x in (matrices, others))
        done = [join(*row) for row in zip(plan, leaves, *parts, strict=True)]
        return jax.tree.unflatten(treedef, done), OnMatricesState(matrices_state, rest_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _split(
    tree: Any,
    plan: Sequence[Leaf | None],
    as_matrix: Callable[[MatrixView, Any], Any],
    as_other: Callable[[Any], Any],
) -> tuple[Any, Any]:
    """The matrices of a tree and what else is in it, as two trees."""
    leaves, treedef = jax.tree.flatten(unbox(tree), is_leaf=is_leaf)
    require_same_leaves(leaves, plan)
    nothing = optax.MaskedNode()
    matrices = [
        as_matrix(leaf.view, x) if leaf and leaf.view else nothing
        for leaf, x in zip(plan, leaves, strict=True)
    ]
    others = [
        as_other(x) if leaf and not leaf.view and 0 not in x.shape else nothing
        for leaf, x in zip(plan, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, matrices), jax.tree.unflatten(treedef, others)


def _usable_matrix(view: MatrixView, grad: jax.Array) -> jax.Array:
    """The matrices ``[*batch, m, n]``, zero where one has an entry that is not finite."""
    matrix = view.to_matrix(grad)
    finite = jnp.all(jnp.isfinite(matrix), axis=(-1, -2), keepdims=True)
    return jnp.where(finite, matrix, 0)

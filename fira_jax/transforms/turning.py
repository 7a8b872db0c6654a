"""How an optimizer's state turns when its subspace is replaced by another."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from fira_jax.subspace import Subspace
from fira_jax.trees import map_leaves


class Turn:
    r"""A change of bases, to be applied to the state of the optimizer in the subspace.

    With :math:`T = P_{new}^\top P_{old}` for each matrix whose basis was replaced at this step.
    Other matrices, and parameters that are not projected, stay as they are.

    An optimizer of your own tells how its state turns by a method ``turned(turn)`` of the state,
    which returns the state in the new basis, or by the argument ``turned(state, turn)`` of
    :func:`fira_jax.in_subspace`. Both see trees like the parameters, with coordinates
    ``[*batch, r, b]`` for each that is projected.

    Args:
      nodes: the gradients on their way through the subspace; None before the first step, when
        nothing turns.

    Example:
      >>> import fira_jax, jax.numpy as jnp, optax
      >>> from typing import NamedTuple
      >>> class Momentum(NamedTuple):
      ...     m: Any
      ...     def turned(self, turn):
      ...         return Momentum(turn.means(self.m))
      >>> state = Momentum({"w": jnp.ones((2, 16))})
      >>> state.turned(fira_jax.transforms.Turn()).m["w"].shape
      (2, 16)
    """

    def __init__(self, nodes: Any = None) -> None:
        """Keeps the nodes, which know their rotations."""
        self.nodes = nodes

    def means(self, tree: Any) -> Any:
        r"""What is linear in the gradient, such as a momentum: :math:`M \leftarrow T M`."""
        return self.each(_turned, tree)

    def squares(self, tree: Any) -> Any:
        r"""Averages of squares: :math:`V \leftarrow (T \circ T) V`, which stay non-negative."""
        return self.each(_turned_squares, tree)

    def each(self, f: Callable[[jax.Array, jax.Array], jax.Array], tree: Any) -> Any:
        """Anything else, by ``f(T, x)`` of the array of each projected parameter.

        Args:
          f: from ``[*batch, r, r]`` and an array, both float32 or wider, to an array of its shape;
            such as ``lambda turn, x: turn @ x @ turn.mT`` for a second-moment matrix.
          tree: a tree like the parameters.
        """
        if self.nodes is None:
            return tree

        def one(node: Any, x: jax.Array) -> tuple[Any, jax.Array]:
            if not isinstance(node, Subspace) or node.rotation is None:
                return node, x
            return node, _turned_if(f, node.refreshed, node.rotation, x)

        return map_leaves(one, self.nodes, tree)[1]


def _turned(turn: jax.Array, m: jax.Array) -> jax.Array:
    return turn @ m


def _turned_squares(turn: jax.Array, v: jax.Array) -> jax.Array:
    return jnp.square(turn) @ v


# Jitted so that an update that is not inside a jit compiles the choice once, not at every step.
@functools.partial(jax.jit, static_argnums=0)
def _turned_if(
    f: Callable[[jax.Array, jax.Array], jax.Array],
    refreshed: jax.Array,
    turn: jax.Array,
    x: jax.Array,
) -> jax.Array:
    wide = x.astype(jnp.promote_types(x.dtype, turn.dtype))
    turned = lambda: f(turn.astype(wide.dtype), wide).astype(x.dtype)  # noqa: E731
    return jax.lax.cond(jnp.any(refreshed), turned, lambda: x)


def turn_state(state: Any, turn: Turn) -> Any:
    """The state of an Optax transformation, or one with a method ``turned``, in the new basis.

    Raises:
      ValueError: how such a state turns is not known.
    """
    if hasattr(state, "turned"):
        return state.turned(turn)
    if type(state) is tuple:  # of a chain
        return tuple(turn_state(x, turn) for x in state)
    if isinstance(state, optax.MaskedState):
        return optax.MaskedState(turn_state(state.inner_state, turn))
    if type(state) in _FIELDS:
        means, squares = _FIELDS[type(state)]
        changes = {name: turn.means(getattr(state, name)) for name in means}
        changes |= {name: turn.squares(getattr(state, name)) for name in squares}
        return state._replace(**changes)
    raise ValueError(
        f"moments='carry': how {type(state).__name__} turns with the basis is not known; give "
        "in_subspace the argument turned, or the state a method of that name, see "
        "fira_jax.transforms.Turn"
    )


_FIELDS: dict[type, tuple[tuple[str, ...], tuple[str, ...]]] = {
    optax.EmptyState: ((), ()),
    optax.ScaleByScheduleState: ((), ()),
    optax.TraceState: (("trace",), ()),
    optax.EmaState: (("ema",), ()),
    optax.ScaleByLionState: (("mu",), ()),
    optax.ScaleByAdamState: (("mu",), ("nu",)),
    optax.ScaleByBeliefState: (("mu",), ("nu",)),
    optax.ScaleByAmsgradState: (("mu",), ("nu", "nu_max")),
    optax.ScaleByRmsState: ((), ("nu",)),
    optax.ScaleByRStdDevState: (("mu",), ("nu",)),
    optax.ScaleByRssState: ((), ("sum_of_squares",)),
    contrib.ScaleByAdemamixState: (("m1", "m2"), ("nu",)),
    contrib.ScaleBySimplifiedAdEMAMixState: (("m",), ("n",)),
}
"""Of Optax's states: the fields that are linear in gradients, and those that are averages of
squares."""

"""Steps on a weight's direction and its magnitude, as if it were normalized."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fira_jax.dtypes import state_dtype
from fira_jax.low_rank import LowRank
from fira_jax.norms import root
from fira_jax.trees import Params, is_leaf, require_same_leaves, unbox


class WeightNormalizedState(NamedTuple):
    """State of :func:`weight_normalized`.

    Attributes:
      count: steps taken, int32 scalar.
      direction: state of the transformation of directions, and of all other parameters.
      magnitude: state of the transformation of magnitudes, ``[*batch, 1, n]``.
    """

    count: jax.Array  # type: ignore[assignment]  # as Optax names it
    direction: Any
    magnitude: Any


def weight_normalized(
    low_rank: LowRank,
    learning_rate: optax.ScalarOrSchedule,
    direction: optax.GradientTransformation,
    magnitude: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    r"""Moves weights as :math:`W = g \circ V / \lVert V \rVert`, with a norm for each output unit.

    .. math::

        \nabla_g = \langle G_{:,j}, W_{:,j} / \lVert W_{:,j} \rVert \rangle, \qquad
        \nabla_V = G - \nabla_g \circ W / \lVert W \rVert, \qquad
        W \leftarrow (g - \eta D_g) \circ \frac{W - \eta D_V}{\lVert W - \eta D_V \rVert}

    with :math:`g = \lVert W \rVert` and :math:`V = W`, so that neither is stored. Other parameters
    move by what ``direction`` makes of their gradient, and so does an output unit whose weights
    are all zero: it has no direction yet. The result depends on the learning rate in more
    than proportion, which is why it is an argument: let nothing scale the updates that follow.

    Args:
      low_rank: which parameters are matrices, and along which axes.
      learning_rate: :math:`\eta`, a scalar or a schedule.
      direction: makes :math:`D_V` of :math:`\nabla_V`.
      magnitude: makes :math:`D_g` of :math:`\nabla_g`.

    Raises:
      ValueError: ``update`` is not given the parameters.

    Example:
      >>> import fira_jax, jax.numpy as jnp, optax
      >>> low_rank = fira_jax.LowRank(rank=2)
      >>> parts = optax.identity(), optax.set_to_zero()
      >>> tx = fira_jax.transforms.weight_normalized(low_rank, 0.1, *parts)
      >>> params = jnp.eye(4)
      >>> updates, _ = tx.update(jnp.ones((4, 4)), tx.init(params), params)
      >>> norms = jnp.linalg.norm(params + updates, axis=0)  # only directions moved
      >>> bool(jnp.allclose(norms, 1, atol=1e-6))
      True

    References:
      Salimans and Kingma, `Weight normalization <https://arxiv.org/abs/1602.07868>`_, 2016.
    """
    direction, magnitude = (optax.with_extra_args_support(x) for x in (direction, magnitude))

    def init(params: Params) -> WeightNormalizedState:
        magnitudes = low_rank.for_each_matrix(
            params,
            lambda view, dtype: jnp.zeros(
                (*view.batch_shape, 1, view.matrix_shape[1]), state_dtype(dtype)
            ),
        )
        count = jnp.zeros([], jnp.int32)
        return WeightNormalizedState(count, direction.init(params), magnitude.init(magnitudes))

    def update(
        updates: optax.Updates,
        state: WeightNormalizedState,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, WeightNormalizedState]:
        if params is None:
            raise ValueError(
                "weight_normalized needs the parameters: tx.update(grads, state, params)"
            )
        views = [leaf.view if leaf else None for leaf in low_rank.leaves(updates)]
        grads, treedef = jax.tree.flatten(updates, is_leaf=is_leaf)
        weights = jax.tree.leaves(unbox(params), is_leaf=is_leaf)
        require_same_leaves(grads, weights)
        nothing = optax.MaskedNode()

        parts = [
            (g, nothing) if v is None else _split(v.to_matrix(g), v.to_matrix(w))
            for g, w, v in zip(grads, weights, views, strict=True)
        ]
        tangents = [
            x if v is None else v.from_matrix(x) for (x, _), v in zip(parts, views, strict=True)
        ]
        moved, direction_state = direction.update(
            jax.tree.unflatten(treedef, tangents), state.direction, params, **extra_args
        )
        lengths, magnitude_state = magnitude.update(
            jax.tree.unflatten(treedef, [g for _, g in parts]), state.magnitude, None, **extra_args
        )

        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        moved, lengths = (jax.tree.leaves(x, is_leaf=is_leaf) for x in (moved, lengths))
        steps = [
            _step(x, g, w, v, rate)
            for x, g, w, v in zip(moved, lengths, weights, views, strict=True)
        ]
        count = optax.safe_increment(state.count)
        return (
            jax.tree.unflatten(treedef, steps),
            WeightNormalizedState(count, direction_state, magnitude_state),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def add_updates_of(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Adds to updates what ``tx`` makes of none, for what must not be scaled together with them."""

    def update(
        updates: optax.Updates, state: optax.OptState, params: Params | None = None, **_: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        more, state = tx.update(jax.tree.map(jnp.zeros_like, updates), state, params)
        return jax.tree.map(jnp.add, updates, more), state

    return optax.GradientTransformationExtraArgs(tx.init, update)


def _split(grad: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The gradients of the direction ``[*batch, m, n]`` and of the magnitude ``[*batch, 1, n]``."""
    wide = jnp.promote_types(grad.dtype, jnp.float32)
    g, w = grad.astype(wide), weight.astype(wide)
    usable = jnp.isfinite(jnp.sum(jnp.square(g), axis=(-2, -1), keepdims=True))
    g, norm = jnp.where(usable, g, 0), _norm(w)
    unit = w / jnp.where(norm > 0, norm, 1)
    along = jnp.sum(g * unit, axis=-2, keepdims=True)
    return (g - along * unit).astype(grad.dtype), along.astype(state_dtype(grad.dtype))


def _step(x: Any, length: Any, weight: Any, view: Any, rate: Any) -> Any:
    """What is added to one parameter."""
    if view is None:
        return x if isinstance(x, optax.MaskedNode) else (-rate * x).astype(x.dtype)
    wide = jnp.promote_types(weight.dtype, jnp.float32)
    w, d = (view.to_matrix(y).astype(wide) for y in (weight, x))
    norm, ahead = _norm(w), _norm(w - rate * d)
    # The new weight less the old one, without the digits that this subtraction would lose.
    shorter = jnp.sum(rate * d * (2 * w - rate * d), axis=-2, keepdims=True)
    shorter = shorter / jnp.where(norm > 0, norm + ahead, 1)
    stretch = (shorter - rate * length.astype(wide)) / jnp.where(ahead > 0, ahead, 1)
    stretch = jnp.where(ahead > 0, stretch, -1)
    step = jnp.where(norm > 0, stretch * w - (1 + stretch) * rate * d, -rate * d)
    return view.from_matrix(step.astype(x.dtype))


def _norm(x: jax.Array) -> jax.Array:
    return root(jnp.sum(jnp.square(x), axis=-2, keepdims=True))

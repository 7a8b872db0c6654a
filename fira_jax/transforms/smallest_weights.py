"""Fine-tuning only the weights that matter least so far: the smallest ones (SaRA)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fira_jax.trees import Params, map_leaves


class Chosen(NamedTuple):
    """The trained entries of one parameter.

    Attributes:
      places: their flat indices, int32 [k].
      start: their values when they were chosen, [k].
      active: which are still trained, bool [k].
    """

    places: jax.Array
    start: jax.Array
    active: jax.Array


class OnSmallestWeightsState(NamedTuple):
    """State of :func:`on_smallest_weights`.

    Attributes:
      count: updates done, int32.
      chosen: a tuple with a :class:`Chosen` for each parameter, in the order of the leaves.
      inner: state of the optimizer, which sees k entries of each parameter.
    """

    count: jax.Array  # type: ignore[assignment]  # as Optax names it
    chosen: tuple[Chosen, ...]
    inner: Any


def on_smallest_weights(
    inner: optax.GradientTransformation,
    fraction: float = 0.1,
    adjust_at: int | None = None,
    nuclear_penalty: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Trains, of every matrix, the share of entries of smallest magnitude.

    ``inner`` sees them gathered, so that its state has their number of elements. At the step
    ``adjust_at`` those that have grown beyond the threshold that they were chosen by stop:
    only what is still small goes on.

    With ``nuclear_penalty`` :math:`\lambda` the change :math:`\Delta` of a matrix is kept of low
    rank: :math:`\lambda U V^\top`, of its singular vectors, is added to the gradient. That takes
    an SVD of every matrix at every step.

    Args:
      inner: a whole optimizer, learning rate included.
      fraction: share of a matrix's entries that is trained, in (0, 1].
      adjust_at: after how many updates the choice is narrowed; half of the run in the paper. None
        for never.
      nuclear_penalty: :math:`\lambda`.

    Raises:
      ValueError: ``fraction`` out of range, or ``update`` without ``params``.

    Example:
      >>> import fira_jax, optax, jax.numpy as jnp
      >>> tx = fira_jax.transforms.on_smallest_weights(optax.sgd(1.0), fraction=0.5)
      >>> w = jnp.array([[3.0, -1.0], [0.5, 2.0]])
      >>> updates, _ = tx.update(jnp.ones((2, 2)), tx.init(w), w)
      >>> updates.tolist()
      [[0.0, -1.0], [-1.0, 0.0]]

    References:
      Hu et al., `SaRA: High-Efficient Diffusion Model Fine-tuning with Progressive Sparse Low-Rank
      Adaptation <https://arxiv.org/abs/2409.06633>`_, 2024. Readings: the threshold is each
      matrix's own quantile, so that sizes are known ahead (the paper has one for the model); what
      has grown stops at ``adjust_at`` and nothing new is chosen. Parameters with fewer than two
      axes stay as they are.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}")
    inner = optax.with_extra_args_support(inner)

    def gathered(tree: Params, chosen: tuple[Chosen, ...]) -> list[jax.Array]:
        leaves = jax.tree.leaves(tree)
        return [x.ravel()[c.places] for x, c in zip(leaves, chosen, strict=True)]

    def choose(w: jax.Array) -> Chosen:
        count = max(1, round(fraction * w.size)) if w.ndim >= 2 else 0
        _, places = jax.lax.top_k(-jnp.abs(w.ravel().astype(jnp.float32)), count)
        places = jnp.sort(places).astype(jnp.int32)
        return Chosen(places, w.ravel()[places], jnp.ones(count, bool))

    def init(params: Params) -> OnSmallestWeightsState:
        chosen = tuple(choose(w) for w in jax.tree.leaves(params))
        return OnSmallestWeightsState(
            jnp.zeros([], jnp.int32), chosen, inner.init(gathered(params, chosen))
        )

    def narrowed(c: Chosen, w: jax.Array, now: jax.Array) -> Chosen:
        threshold = jnp.max(jnp.abs(c.start), initial=0)
        small = jnp.abs(w.ravel()[c.places]) <= threshold
        return c._replace(active=c.active & (small | ~now))

    def low_rank(c: Chosen, w: jax.Array, grad: jax.Array) -> jax.Array:
        change = jnp.where(c.active, w.ravel()[c.places] - c.start, 0).astype(jnp.float32)
        dense = jnp.zeros(w.size, jnp.float32).at[c.places].set(change).reshape(w.shape)
        left, values, right = jnp.linalg.svd(dense, full_matrices=False)
        held = (values > 1e-6 * values[..., :1])[..., None, :]
        return grad + nuclear_penalty * ((left * held) @ right).ravel()[c.places]

    def update(
        updates: optax.Updates,
        state: OnSmallestWeightsState,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, OnSmallestWeightsState]:
        if params is None:
            raise ValueError("on_smallest_weights needs params: call update(grads, state, params)")
        weights, chosen = jax.tree.leaves(params), state.chosen
        if adjust_at is not None:
            now = state.count == adjust_at
            chosen = tuple(narrowed(c, w, now) for c, w in zip(chosen, weights, strict=True))
        grads = gathered(updates, chosen)
        if nuclear_penalty:
            grads = [
                low_rank(c, w, g).astype(g.dtype) if c.places.size else g
                for c, w, g in zip(chosen, weights, grads, strict=True)
            ]
        grads = [jnp.where(c.active, g, 0) for c, g in zip(chosen, grads, strict=True)]
        steps, inner_state = inner.update(
            grads, state.inner, gathered(params, chosen), **extra_args
        )
        pieces = iter(zip(chosen, steps, strict=True))

        def scattered(grad: jax.Array) -> jax.Array:
            c, step = next(pieces)
            step = jnp.where(c.active, step, 0).astype(grad.dtype)
            return jnp.zeros(grad.size, grad.dtype).at[c.places].set(step).reshape(grad.shape)

        new = map_leaves(scattered, updates)
        return new, OnSmallestWeightsState(optax.safe_increment(state.count), chosen, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)

"""Weights in bfloat16 that do not lose small updates."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fira_jax.random_bits import random_bits, word
from fira_jax.trees import Params, is_leaf, map_leaves, path_name, unbox


class StochasticRoundingState(NamedTuple):
    """State of :func:`round_stochastically`.

    Attributes:
      count: steps taken, int32 scalar.
    """

    count: jax.Array  # type: ignore[assignment]  # as Optax names it


def round_stochastically(
    seed: jax.typing.ArrayLike = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Rounds each bfloat16 weight after its update up or down at random, right on average.

    Neighbouring bfloat16 numbers are 1/128 to 1/256 of their size apart, so that an update below
    1/512 of a weight is lost when ``optax.apply_updates`` rounds to the nearest. Here a weight
    :math:`w` with neighbours :math:`l \le w \le u` becomes

    .. math::

        u \text{ with probability } \frac{w - l}{u - l}, \text{ else } l

    whose expectation is :math:`w`. The last member of a chain: it returns the difference to the
    rounded weight, which is then added without rounding. Parameters of other dtypes pass
    unchanged.

    The random numbers are hashes of seed, step, path and position. No key is kept, a resumed run
    repeats them exactly, and replicas of a weight round alike.

    Args:
      seed: seeds the rounding.

    Raises:
      ValueError: at ``update``, if the parameters are not given.

    Example:
      >>> import fira_jax, jax.numpy as jnp, optax
      >>> tx = optax.chain(optax.sgd(1e-3), fira_jax.precision.round_stochastically())
      >>> params = {"w": jnp.ones(10_000, jnp.bfloat16)}
      >>> updates, state = tx.update({"w": jnp.ones(10_000)}, tx.init(params), params)
      >>> new = optax.apply_updates(params, updates)["w"].astype(jnp.float32)
      >>> sorted(set(new.tolist())), round(float(new.mean()), 3)
      ([0.99609375, 1.0], 0.999)

    References:
      Zhang et al., `Q-GaLore <https://arxiv.org/abs/2407.08296>`_, 2024, round so to 8 bits; here
      it is used for bfloat16, without any state.
    """

    def init(params: Params) -> StochasticRoundingState:
        del params
        return StochasticRoundingState(jnp.zeros([], jnp.int32))

    def update(
        updates: optax.Updates,
        state: StochasticRoundingState,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, StochasticRoundingState]:
        del extra_args
        if params is None:
            raise ValueError("round_stochastically rounds the parameters: give them to update")
        paths, treedef = jax.tree_util.tree_flatten_with_path(updates, is_leaf=is_leaf)
        names = jax.tree.unflatten(treedef, [word(path_name(path)) for path, _ in paths])

        def round_leaf(leaf: Any, param: Any, name: Any) -> tuple[Any, Any, Any]:
            if param.dtype != jnp.bfloat16:
                return leaf, param, name
            old = param.astype(jnp.float32)
            bits = random_bits(seed, state.count, name, param.shape)
            new = stochastic_bfloat16(old + leaf.astype(jnp.float32), bits)
            # The sum of the two is exact unless the update undoes 99.9 % of the weight.
            return new.astype(jnp.float32) - old, param, name

        rounded = map_leaves(round_leaf, updates, unbox(params), names)[0]
        return rounded, StochasticRoundingState(optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)


def stochastic_bfloat16(x: jax.Array, bits: jax.Array) -> jax.Array:
    """Rounds float32 to one of the two nearest bfloat16 numbers, to either by its nearness.

    Args:
      x: float32.
      bits: random uint32 of the same shape, of which the upper half is used.
    """
    words = jax.lax.bitcast_convert_type(x, jnp.uint32) + (bits >> 16)
    # bfloat16 is the upper half of float32: what is cut off has carried into it as often as it
    # should. The rest is cleared, since a conversion would round it once more.
    cut = jax.lax.bitcast_convert_type(words & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), cut, x).astype(jnp.bfloat16)

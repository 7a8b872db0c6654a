"""A vision transformer in Flax Linen: patches by a convolution, one line changed."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import fira_jax
from examples import shared


class VisionTransformer(nn.Module):
    """Says which color of an image is brighter."""

    width: int = 64

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """``[BATCH, size, size, 3]`` to logits ``[BATCH, 3]``."""
        x = nn.Conv(self.width, (4, 4), strides=(4, 4), name="patch_embedding")(images)
        x = x.reshape(x.shape[0], -1, self.width)
        x = x + self.param("pos_embedding", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        for _ in range(2):
            x = x + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x))
            y = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
            x = x + nn.Dense(self.width)(y)
        return nn.Dense(3, name="head")(jnp.mean(nn.LayerNorm()(x), axis=1))


def main() -> tuple[list[float], fira_jax.Description]:
    """Trains, saves halfway, and goes on from the checkpoint."""
    model = VisionTransformer()
    params = model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    # tx = optax.adamw(1e-3)
    tx = fira_jax.fira(1e-3, rank=8, scale=1.0, weight_dimension_numbers=fira_jax.match_modules())
    table = shared.show_memory(tx, params)

    @jax.jit
    def train_step(params: Any, state: Any, batch: Any) -> tuple[Any, Any, jax.Array]:
        pixels, labels = batch

        def loss(params: Any) -> jax.Array:
            logits = model.apply({"params": params}, pixels)
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    state = tx.init(params)
    losses = []
    for step in range(shared.STEPS):
        if step == shared.STEPS - 3:
            resumed, its_state = shared.through_a_checkpoint((params, state))
        params, state, value = train_step(params, state, shared.images(step))
        losses.append(float(value))
    shared.show_curve(losses)

    for step in range(shared.STEPS - 3, shared.STEPS):
        resumed, its_state, _ = train_step(resumed, its_state, shared.images(step))
    shared.require_same(resumed, params)
    return losses, table


if __name__ == "__main__":
    main()

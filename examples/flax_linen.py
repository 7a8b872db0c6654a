"""Flax Linen with a TrainState, layers scanned and rematerialized: one line changes."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.training.train_state import TrainState

import fira_jax
from examples import shared


class Block(nn.Module):
    """Attention and MLP, before a residual each."""

    @nn.compact
    def __call__(self, x: jax.Array, _: Any = None) -> tuple[jax.Array, None]:
        """``[BATCH, LENGTH, width]`` to the same, as ``nn.scan`` wants it."""
        width = x.shape[-1]
        mask = nn.make_causal_mask(x[..., 0])
        x = x + nn.MultiHeadDotProductAttention(4, name="attention")(nn.LayerNorm()(x), mask=mask)
        y = nn.gelu(nn.Dense(4 * width, name="up")(nn.LayerNorm()(x)))
        return x + nn.Dense(width, name="down")(y), None


class Model(nn.Module):
    """A small language model: one block, compiled once, run for every layer."""

    width: int = 64
    layers: int = 2

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits of the next tokens."""
        x = nn.Embed(shared.VOCABULARY, self.width)(tokens)
        stack = nn.scan(
            nn.remat(Block),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.layers,
        )
        x, _ = stack(name="layers")(x, None)
        return nn.Dense(shared.VOCABULARY, name="lm_head")(x)


@jax.jit
def train_step(state: TrainState, batch: jax.Array) -> tuple[TrainState, jax.Array]:
    """One step."""

    def loss(params: Any) -> jax.Array:
        return shared.next_token_loss(state.apply_fn({"params": params}, batch[:, :-1]), batch)

    value, grads = jax.value_and_grad(loss)(state.params)
    return state.apply_gradients(grads=grads), value


def main() -> tuple[list[float], fira_jax.Description]:
    """Trains, saves halfway, and goes on from the checkpoint."""
    model = Model()
    params = model.init(jax.random.key(0), jnp.zeros((1, shared.LENGTH), int))["params"]
    # tx = optax.adamw(3e-3)
    tx = fira_jax.fira(3e-3, rank=8, scale=1.0, weight_dimension_numbers=fira_jax.match_modules())
    table = shared.show_memory(tx, params)

    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
    losses = []
    for step in range(shared.STEPS):
        if step == shared.STEPS - 3:
            resumed = state.replace(
                **shared.through_a_checkpoint(
                    {"step": state.step, "params": state.params, "opt_state": state.opt_state}
                )
            )
        state, loss = train_step(state, jnp.asarray(shared.tokens(step)))
        losses.append(float(loss))
    shared.show_curve(losses)

    for step in range(shared.STEPS - 3, shared.STEPS):
        resumed, _ = train_step(resumed, jnp.asarray(shared.tokens(step)))
    shared.require_same(resumed.params, state.params)
    return losses, table


if __name__ == "__main__":
    main()

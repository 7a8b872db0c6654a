"""Haiku: one line changes."""

from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import optax

import fira_jax
from examples import shared


def model(tokens: jax.Array, width: int = 64) -> jax.Array:
    """Logits of the next tokens: embedding, two blocks of attention and MLP, head."""

    def norm(x: jax.Array) -> jax.Array:
        return hk.LayerNorm(-1, create_scale=True, create_offset=True)(x)

    x = hk.Embed(shared.VOCABULARY, width)(tokens)
    mask = jnp.tril(jnp.ones((1, 1, tokens.shape[1], tokens.shape[1])))
    init = hk.initializers.VarianceScaling()
    for _ in range(2):
        y = norm(x)
        x = x + hk.MultiHeadAttention(4, width // 4, w_init=init)(y, y, y, mask)
        x = x + hk.Linear(width)(jax.nn.gelu(hk.Linear(4 * width)(norm(x))))
    return hk.Linear(shared.VOCABULARY, name="head")(x)


def main() -> tuple[list[float], fira_jax.Description]:
    """Trains, saves halfway, and goes on from the checkpoint."""
    network = hk.without_apply_rng(hk.transform(model))
    params = network.init(jax.random.key(0), jnp.zeros((1, shared.LENGTH), int))
    # tx = optax.adamw(3e-3)
    tx = fira_jax.fira(3e-3, rank=8, scale=1.0, weight_dimension_numbers=fira_jax.match_modules())
    table = shared.show_memory(tx, params)

    @jax.jit
    def train_step(params: Any, state: Any, batch: jax.Array) -> tuple[Any, Any, jax.Array]:
        def loss(params: Any) -> jax.Array:
            return shared.next_token_loss(network.apply(params, batch[:, :-1]), batch)

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    state = tx.init(params)
    losses = []
    for step in range(shared.STEPS):
        if step == shared.STEPS - 3:
            resumed, its_state = shared.through_a_checkpoint((params, state))
        params, state, value = train_step(params, state, jnp.asarray(shared.tokens(step)))
        losses.append(float(value))
    shared.show_curve(losses)

    for step in range(shared.STEPS - 3, shared.STEPS):
        resumed, its_state, _ = train_step(resumed, its_state, jnp.asarray(shared.tokens(step)))
    shared.require_same(resumed, params)
    return losses, table


if __name__ == "__main__":
    main()

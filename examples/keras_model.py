"""Keras 3 by its stateless interface: one line changes."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import keras
import optax

import fira_jax
from examples import shared

Weights = dict[str, jax.Array]


def make_model(width: int = 64) -> keras.Model:
    """A small language model."""
    tokens = keras.Input((shared.LENGTH,), dtype="int32")
    x = keras.layers.Embedding(shared.VOCABULARY, width)(tokens)
    y = keras.layers.LayerNormalization()(x)
    attention = keras.layers.MultiHeadAttention(4, width // 4)
    x = x + attention(y, y, use_causal_mask=True)
    y = keras.layers.LayerNormalization()(x)
    y = keras.layers.Dense(4 * width, activation="gelu", name="up")(y)
    x = x + keras.layers.Dense(width, name="down")(y)
    return keras.Model(tokens, keras.layers.Dense(shared.VOCABULARY, name="head")(x))


def main() -> tuple[list[float], fira_jax.Description]:
    """Trains, saves halfway, and goes on from the checkpoint."""
    keras.utils.set_random_seed(0)
    model = make_model()
    # By their paths, which say what they are.
    paths = [v.path for v in model.trainable_variables]
    weights: Weights = {v.path: v.value for v in model.trainable_variables}
    fixed = [v.value for v in model.non_trainable_variables]
    # tx = optax.adamw(3e-3)
    tx = fira_jax.fira(3e-3, rank=8, scale=1.0, weight_dimension_numbers=fira_jax.match_modules())
    table = shared.show_memory(tx, weights)

    @jax.jit
    def train_step(
        weights: Weights, state: optax.OptState, batch: jax.Array
    ) -> tuple[Weights, optax.OptState, jax.Array]:
        def loss(weights: Weights) -> jax.Array:
            logits, _ = model.stateless_call([weights[p] for p in paths], fixed, batch[:, :-1])
            return shared.next_token_loss(logits, batch)

        value, grads = jax.value_and_grad(loss)(weights)
        updates, state = tx.update(grads, state, weights)
        return optax.apply_updates(weights, updates), state, value

    state = tx.init(weights)
    losses = []
    for step in range(shared.STEPS):
        if step == shared.STEPS - 3:
            resumed, its_state = shared.through_a_checkpoint((weights, state))
        weights, state, value = train_step(weights, state, jnp.asarray(shared.tokens(step)))
        losses.append(float(value))
    shared.show_curve(losses)
    for variable in model.trainable_variables:  # back into the model
        variable.assign(weights[variable.path])

    for step in range(shared.STEPS - 3, shared.STEPS):
        resumed, its_state, _ = train_step(resumed, its_state, jnp.asarray(shared.tokens(step)))
    shared.require_same(resumed, weights)
    return losses, table


if __name__ == "__main__":
    main()

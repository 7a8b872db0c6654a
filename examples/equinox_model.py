"""Equinox: one line changes."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

import fira_jax
from examples import shared


class Block(eqx.Module):
    """Attention and MLP, before a residual each."""

    attention: eqx.nn.MultiheadAttention
    mlp: eqx.nn.MLP
    norm1: eqx.nn.LayerNorm
    norm2: eqx.nn.LayerNorm

    def __init__(self, width: int, key: jax.Array) -> None:
        """Makes the weights."""
        first, second = jax.random.split(key)
        self.attention = eqx.nn.MultiheadAttention(4, width, key=first)
        self.mlp = eqx.nn.MLP(width, width, 4 * width, 1, jax.nn.gelu, key=second)
        self.norm1, self.norm2 = eqx.nn.LayerNorm(width), eqx.nn.LayerNorm(width)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[LENGTH, width]`` to the same."""
        y = jax.vmap(self.norm1)(x)
        x = x + self.attention(y, y, y, mask=jnp.tril(jnp.ones((len(x), len(x)), bool)))
        return x + jax.vmap(lambda row: self.mlp(self.norm2(row)))(x)


class Model(eqx.Module):
    """A small language model."""

    embedding: eqx.nn.Embedding
    layers: list[Block]
    head: eqx.nn.Linear

    def __init__(self, width: int, key: jax.Array) -> None:
        """Makes the weights."""
        first, second, *others = jax.random.split(key, 4)
        self.embedding = eqx.nn.Embedding(shared.VOCABULARY, width, key=first)
        self.layers = [Block(width, key) for key in others]
        self.head = eqx.nn.Linear(width, shared.VOCABULARY, key=second)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits of the next tokens of one sequence."""
        x = jax.vmap(self.embedding)(tokens)
        for layer in self.layers:
            x = layer(x)
        return jax.vmap(self.head)(x)


def main() -> tuple[list[float], fira_jax.Description]:
    """Trains, saves halfway, and goes on from the checkpoint."""
    model = Model(64, jax.random.key(0))
    # tx = optax.adamw(3e-3)
    tx = fira_jax.fira(3e-3, rank=8, scale=1.0, weight_dimension_numbers=fira_jax.match_modules())
    table = shared.show_memory(tx, eqx.filter(model, eqx.is_array))

    @eqx.filter_jit
    def train_step(model: Model, state: Any, batch: jax.Array) -> tuple[Model, Any, jax.Array]:
        def loss(model: Model) -> jax.Array:
            return shared.next_token_loss(jax.vmap(model)(batch[:, :-1]), batch)

        value, grads = eqx.filter_value_and_grad(loss)(model)
        updates, state = tx.update(grads, state, eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates), state, value

    state = tx.init(eqx.filter(model, eqx.is_array))
    losses = []
    for step in range(shared.STEPS):
        if step == shared.STEPS - 3:
            arrays, static = eqx.partition((model, state), eqx.is_array)
            leaves, structure = jax.tree.flatten(arrays)
            saved = shared.through_a_checkpoint(leaves)
        model, state, value = train_step(model, state, jnp.asarray(shared.tokens(step)))
        losses.append(float(value))
    shared.show_curve(losses)

    resumed, its_state = eqx.combine(jax.tree.unflatten(structure, saved), static)
    for step in range(shared.STEPS - 3, shared.STEPS):
        resumed, its_state, _ = train_step(resumed, its_state, jnp.asarray(shared.tokens(step)))
    shared.require_same(*(eqx.filter(x, eqx.is_array) for x in (resumed, model)))
    return losses, table


if __name__ == "__main__":
    main()

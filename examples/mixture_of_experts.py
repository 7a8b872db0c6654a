"""A mixture of experts in plain JAX: each expert has a subspace of its own, one line changed."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import fira_jax
from examples import shared

WIDTH, HIDDEN, EXPERTS = 64, 128, 4


def init(key: jax.Array) -> Any:
    """The weights of an embedding, a layer of experts with its router, and a head."""

    def normal(key: jax.Array, *shape: int) -> jax.Array:
        return jax.random.normal(key, shape) / shape[-2] ** 0.5

    keys = jax.random.split(key, 6)
    return {
        "embed": jax.random.normal(keys[0], (shared.VOCABULARY, WIDTH)),
        "mixer": {"kernel": normal(keys[1], 2 * WIDTH, WIDTH)},
        "norm": {"scale": jnp.ones(WIDTH)},
        "moe": {
            "router": {"kernel": normal(keys[2], WIDTH, EXPERTS)},
            "experts": {
                "up": normal(keys[3], EXPERTS, WIDTH, HIDDEN),
                "down": normal(keys[4], EXPERTS, HIDDEN, WIDTH),
            },
        },
        "head": normal(keys[5], WIDTH, shared.VOCABULARY),
    }


def apply(params: Any, tokens: jax.Array) -> jax.Array:
    """Logits of the next tokens, from the last two; each token goes to its best expert."""
    x = params["embed"][tokens]
    before = jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    x = jnp.concatenate([x, before], axis=-1) @ params["mixer"]["kernel"]
    x = x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6) * params["norm"]["scale"]
    gates = jax.nn.softmax(x @ params["moe"]["router"]["kernel"])
    gates = gates * (gates == jnp.max(gates, -1, keepdims=True))
    experts = params["moe"]["experts"]
    hidden = jax.nn.gelu(jnp.einsum("btd,edh->bteh", x, experts["up"]))
    return (x + jnp.einsum("bteh,ehd,bte->btd", hidden, experts["down"], gates)) @ params["head"]


def main() -> tuple[list[float], fira_jax.Description]:
    """Trains, saves halfway, and goes on from the checkpoint."""
    params = init(jax.random.key(0))
    # tx = optax.adamw(1e-2)
    tx = fira_jax.fira(1e-2, rank=8, scale=1.0, weight_dimension_numbers=fira_jax.match_modules())
    table = shared.show_memory(tx, params)

    @jax.jit
    def train_step(params: Any, state: Any, batch: jax.Array) -> tuple[Any, Any, jax.Array]:
        value, grads = jax.value_and_grad(
            lambda params: shared.next_token_loss(apply(params, batch[:, :-1]), batch)
        )(params)
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

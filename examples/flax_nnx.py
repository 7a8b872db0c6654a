"""Flax NNX: the optimizer's line is the only one that changes."""

import jax
import jax.numpy as jnp
from flax import nnx

import fira_jax
from examples import shared


class Block(nnx.Module):
    """Attention and MLP, before a residual each."""

    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        """Makes the weights."""
        self.norm1, self.norm2 = nnx.LayerNorm(width, rngs=rngs), nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, width, decode=False, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[BATCH, LENGTH, width]`` to the same."""
        mask = nnx.make_causal_mask(x[..., 0])
        x = x + self.attention(self.norm1(x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class Model(nnx.Module):
    """A small language model."""

    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        """Makes the weights."""
        self.embed = nnx.Embed(shared.VOCABULARY, width, rngs=rngs)
        self.layers = nnx.List([Block(width, rngs) for _ in range(2)])
        self.head = nnx.Linear(width, shared.VOCABULARY, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits of the next tokens."""
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@nnx.jit
def train_step(model: Model, optimizer: nnx.Optimizer, batch: jax.Array) -> jax.Array:
    """One step; model and optimizer change in place."""
    loss, grads = nnx.value_and_grad(lambda m: shared.next_token_loss(m(batch[:, :-1]), batch))(
        model
    )
    optimizer.update(model, grads)
    return loss


def main() -> tuple[list[float], fira_jax.Description]:
    """Trains, saves halfway, and goes on from the checkpoint."""
    model = Model(64, nnx.Rngs(0))
    # tx = optax.adamw(3e-3)
    tx = fira_jax.fira(3e-3, rank=8, scale=1.0, weight_dimension_numbers=fira_jax.match_modules())
    table = shared.show_memory(tx, nnx.state(model, nnx.Param))

    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    losses = []
    for step in range(shared.STEPS):
        if step == shared.STEPS - 3:
            graph, state = nnx.split((model, optimizer))
            saved = shared.through_a_checkpoint(nnx.to_pure_dict(state))
        losses.append(float(train_step(model, optimizer, jnp.asarray(shared.tokens(step)))))
    shared.show_curve(losses)

    nnx.replace_by_pure_dict(state, saved)
    resumed, its_optimizer = nnx.merge(graph, state)
    for step in range(shared.STEPS - 3, shared.STEPS):
        train_step(resumed, its_optimizer, jnp.asarray(shared.tokens(step)))
    shared.require_same(nnx.to_pure_dict(nnx.state(resumed)), nnx.to_pure_dict(nnx.state(model)))
    return losses, table


if __name__ == "__main__":
    main()

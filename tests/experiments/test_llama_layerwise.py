"""LLaMA cut into parts trains as the whole one does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import fira_jax
from experiments.llama.model import Llama, LlamaConfig, loss
from experiments.training.layerwise_step import llama_parts

CONFIG = LlamaConfig(
    vocab_size=37,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=2,
    max_sequence_length=8,
    remat=True,
)


def test_steps_layer_by_layer_are_ordinary_steps():
    graphdef, params = nnx.split(Llama(CONFIG, rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(params)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 37, (3, 3, 9)))
    tx = optax.sgd(0.5)  # shows every gradient as it is, whatever its size
    init, step = fira_jax.layerwise(tx, **llama_parts(CONFIG, chunk_size=10)._asdict())

    def layerwise(carry, tokens):
        params, state, metrics = step(*carry, tokens)
        return (params, state), metrics["loss"]

    def ordinary(carry, tokens):
        params, state = carry
        value, grads = jax.value_and_grad(lambda p: loss(nnx.merge(graphdef, p), tokens))(params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    @jax.jit
    def both(params, tokens):
        ours = jax.lax.scan(layerwise, (params, init(params)), tokens)
        theirs = jax.lax.scan(ordinary, (params, tx.init(params)), tokens)
        return (ours[0][0], ours[1]), (theirs[0][0], theirs[1])

    (ours, our_losses), (theirs, their_losses) = both(params, tokens)
    np.testing.assert_allclose(our_losses, their_losses, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.max(jnp.abs(b))))

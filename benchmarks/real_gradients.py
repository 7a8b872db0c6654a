"""Gradients as they come: of a LLaMA that Fira trains on real text, at chosen steps."""

import dataclasses
from collections.abc import Container, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from rich.progress import track

import fira_jax
from experiments.llama.configs import load_model_config
from experiments.llama.model import loss
from experiments.text import batches as data
from experiments.training.step import make_init, make_train_step


def gradients(
    model: str, rank: int, steps: int, at: Container[int], tokenizer: str, batch_size: int
) -> Iterator[tuple[int, list[jax.Array]]]:
    """Trains and yields the gradients of attention and MLP.

    Args:
      model: its name in ``experiments/configs``; the vocabulary is the tokenizer's.
      rank: of the Fira that trains it, with a refresh every 50 steps.
      steps: how many.
      at: the steps at which to stop and look.
      tokenizer: what makes tokens of the text.
      batch_size: sequences of 256 tokens.

    Yields:
      A step and its gradients, in stacks ``[layers, a, b]`` with ``a <= b``.
    """
    config, _ = load_model_config(model)
    text = data.load(data.DataConfig(tokenizer=tokenizer, seq_len=256))
    config = dataclasses.replace(config, vocab_size=text.vocab_size)
    batches = text.train(batch_size=batch_size, seed=0)
    schedule = lambda _: 0.01  # noqa: E731
    choose = fira_jax.match_paths(include=("attn", "mlp"))
    optimizer = fira_jax.fira(
        schedule, rank=rank, update_proj_gap=50, weight_dimension_numbers=choose
    )
    graphdef, init = make_init(config, optimizer, seed=0)
    state = jax.jit(init)()
    step = make_train_step(graphdef, optimizer, schedule, accumulate=1)
    gradient = jax.jit(jax.grad(lambda params, x: loss(nnx.merge(graphdef, params), x)))
    for count in track(range(steps), description=f"training {model}"):
        tokens = jnp.asarray(next(batches)["tokens"])
        if count in at:
            yield count, _stacks(gradient(state.params, tokens)["layers"])
        state, _ = step(state, tokens)


def _stacks(layers: dict[str, Any]) -> list[jax.Array]:
    stacks = {**layers["attn"], **layers["mlp"]}.values()
    return [x if x.shape[1] <= x.shape[2] else x.swapaxes(1, 2) for x in stacks]

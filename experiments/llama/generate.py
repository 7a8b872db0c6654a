"""Greedy generation, many prompts at a time."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


@functools.partial(jax.jit, static_argnames=("graphdef", "new_tokens"))
def _continue(
    graphdef: nnx.GraphDef, state: Any, tokens: jax.Array, lengths: jax.Array, new_tokens: int
) -> jax.Array:
    model = nnx.merge(graphdef, state)
    rows = jnp.arange(len(tokens))

    def add(count: jax.Array, tokens: jax.Array) -> jax.Array:
        x_BxLxD = model.hidden(tokens)
        last_Bx1xD = x_BxLxD[rows, lengths + count - 1][:, None]
        return tokens.at[rows, lengths + count].set(jnp.argmax(model.unembed(last_Bx1xD)[:, 0], -1))

    return jax.lax.fori_loop(0, new_tokens, add, tokens)


def generate(
    model: nnx.Module, prompts: Sequence[Sequence[int]], new_tokens: int, end: int | None = None
) -> list[list[int]]:
    """What the model would go on with: at every place the likeliest token.

    Nothing is kept between tokens, so the time grows with the square of the length: good for the
    short answers of an evaluation.

    Args:
        model: A ``Llama``.
        prompts: Token ids, at least one each.
        new_tokens: How many to add.
        end: A token behind which nothing more is taken.

    Returns:
        For each prompt the new ids, without ``end``.
    """
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    if not lengths.size or lengths.min() < 1:
        raise ValueError("every prompt needs at least one token")
    tokens = np.zeros((len(prompts), -(-int(lengths.max()) // 16) * 16 + new_tokens), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    graphdef, state = nnx.split(model)
    out = np.asarray(_continue(graphdef, state, jnp.asarray(tokens), lengths, new_tokens))
    continued = [
        list(map(int, row[n : n + new_tokens])) for row, n in zip(out, lengths, strict=True)
    ]
    return [ids[: ids.index(end)] if end in ids else ids for ids in continued]

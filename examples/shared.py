"""What the examples share: a task that takes seconds, a curve in one line, a checkpoint."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from orbax import checkpoint as ocp

import fira_jax

VOCABULARY, LENGTH, BATCH, STEPS = 64, 16, 16, 40


def tokens(step: int) -> np.ndarray:
    """Sequences that count on in steps of their own, ``[BATCH, LENGTH + 1]``."""
    rng = np.random.default_rng(step)
    start, stride = rng.integers(0, VOCABULARY, BATCH), rng.integers(1, 4, BATCH)
    return (start[:, None] + stride[:, None] * np.arange(LENGTH + 1)) % VOCABULARY


def images(step: int, size: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Noisy images in which one color is brighter, ``[BATCH, size, size, 3]``, and which it is."""
    rng = np.random.default_rng(step)
    labels = rng.integers(0, 3, BATCH)
    pixels = rng.normal(size=(BATCH, size, size, 3)).astype(np.float32)
    pixels[np.arange(BATCH), ..., labels] += 1
    return pixels, labels


def next_token_loss(logits: jax.Array, batch: jax.Array) -> jax.Array:
    """Mean cross-entropy of ``logits`` ``[BATCH, LENGTH, VOCABULARY]`` for the tokens after."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:])
    return jnp.mean(losses)


def show_memory(tx: optax.GradientTransformation, params: Any) -> fira_jax.Description:
    """Prints what happens to every parameter, and the optimizer's state before and after."""
    table = fira_jax.describe(tx, params)
    print(table)
    print(f"before: AdamW, {table.adam_bytes:,} bytes; after: {table.state_bytes:,} bytes")
    return table


def show_curve(losses: Sequence[float]) -> None:
    """Prints the losses as a curve."""
    bars, (low, high) = "▁▂▃▄▅▆▇█", (min(losses), max(losses))
    level = [int((x - low) / max(high - low, 1e-9) * (len(bars) - 1)) for x in losses]
    print(f"{losses[0]:.2f} {''.join(bars[i] for i in level)} {losses[-1]:.2f}")


def through_a_checkpoint(state: Any) -> Any:
    """Writes a tree of arrays by Orbax and reads it again."""
    with tempfile.TemporaryDirectory() as folder, ocp.StandardCheckpointer() as checkpointer:
        path = Path(folder).resolve() / "state"
        checkpointer.save(path, state)
        checkpointer.wait_until_finished()
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        return checkpointer.restore(path, like)


def require_same(one: Any, other: Any) -> None:
    """Resuming is exact: not a bit differs."""
    jax.tree.map(np.testing.assert_array_equal, one, other)
    print("resumed exactly")

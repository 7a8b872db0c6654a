"""The loss of a language model's head without all of its logits."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def chunked_cross_entropy(
    x: jax.Array, head: jax.Array, targets: jax.Array, chunk_size: int = 4096
) -> jax.Array:
    r"""Cross-entropy of ``softmax(x @ head)``, a slice of the vocabulary at a time.

    Forward and backward each compute the logits anew in slices of ``chunk_size`` columns, with a
    running maximum and sum, so that ``tokens * chunk_size`` of them exist at once. Each column of
    the head's gradient is complete when it is written: nothing is accumulated over tokens in the
    head's dtype, as it would be in slices of tokens.

    Args:
      x: output of the last layer, floating point ``[..., D]``.
      head: ``[D, V]``.
      targets: integer ids ``[...]``, each in ``[0, V)``.
      chunk_size: columns in a slice. Static.

    Returns:
      Losses in nats ``[...]``, float32 or wider.

    Raises:
      ValueError: shapes do not fit, or ``chunk_size`` is below 1.

    Example:
      >>> import fira_jax, jax, jax.numpy as jnp
      >>> x, head = jnp.ones((2, 3, 4)), jnp.eye(4, 10)
      >>> losses = fira_jax.chunked_cross_entropy(x, head, jnp.zeros((2, 3), int), 4)
      >>> bool(jnp.allclose(losses, -jax.nn.log_softmax(x @ head)[..., 0]))
      True
    """
    return _forward(x, head, targets, chunk_size)[0]


def _forward(
    x: jax.Array, head: jax.Array, targets: jax.Array, chunk_size: int
) -> tuple[jax.Array, Any]:
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    if x.shape[:-1] != targets.shape or head.ndim != 2 or x.shape[-1] != head.shape[0]:
        raise ValueError(
            "expected x [..., D], head [D, V] and targets [...], got shapes "
            f"{x.shape}, {head.shape} and {targets.shape}"
        )
    rows = x.reshape(-1, x.shape[-1])
    wanted = targets.reshape(-1, 1)
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def add(carry: Any, i: jax.Array) -> tuple[Any, None]:
        largest, total, found = carry
        _, columns, fresh, logits = _slice(rows, head, i, chunk_size)
        new = jnp.maximum(largest, jnp.max(logits, axis=1, keepdims=True))
        parts = jnp.where(fresh, jnp.exp(logits - new), 0)
        total = total * jnp.exp(largest - new) + jnp.sum(parts, axis=1, keepdims=True)
        hit = jnp.where(fresh & (columns == wanted), logits, 0)
        return (new, total, found + jnp.sum(hit, axis=1, keepdims=True)), None

    zero = jnp.zeros((len(rows), 1), wide)
    (largest, total, found), _ = jax.lax.scan(
        add, (zero - jnp.inf, zero, zero), jnp.arange(_count(head, chunk_size))
    )
    log_total = largest + jnp.log(total)
    losses = (log_total - found).reshape(targets.shape)
    return losses, (x, head, targets, log_total)


def _backward(chunk_size: int, kept: Any, d_losses: jax.Array) -> tuple[Any, ...]:
    x, head, targets, log_total = kept
    rows, wanted = x.reshape(-1, x.shape[-1]), targets.reshape(-1, 1)
    weights = d_losses.reshape(-1, 1)
    wide = log_total.dtype

    def write(carry: Any, i: jax.Array) -> tuple[Any, None]:
        d_rows, d_head = carry
        start, columns, fresh, logits = _slice(rows, head, i, chunk_size)
        d_logits = weights * (jnp.exp(logits - log_total) - (columns == wanted))
        part = jnp.dot(rows.T, d_logits.astype(x.dtype), preferred_element_type=wide)
        d_head = jax.lax.dynamic_update_slice(d_head, part.astype(head.dtype), (0, start))
        # Columns that the slice before has seen too are written again, but must not add twice.
        d_logits = jnp.where(fresh, d_logits, 0).astype(x.dtype)
        part = jax.lax.dynamic_slice_in_dim(head, start, columns.shape[1], axis=1)
        d_rows += jnp.dot(d_logits, part.T.astype(x.dtype), preferred_element_type=wide)
        return (d_rows, d_head), None

    zeros = jnp.zeros(rows.shape, wide), jnp.zeros(head.shape, head.dtype)
    (d_rows, d_head), _ = jax.lax.scan(write, zeros, jnp.arange(_count(head, chunk_size)))
    return d_rows.reshape(x.shape).astype(x.dtype), d_head, None


def _count(head: jax.Array, chunk_size: int) -> int:
    return math.ceil(head.shape[1] / chunk_size)


def _slice(
    rows: jax.Array, head: jax.Array, i: jax.Array, chunk_size: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Slice ``i``: its first column, all its columns, which of them are new, and the logits.

    The last slice is as wide as the others and reaches back into the one before it.
    """
    width = min(chunk_size, head.shape[1])
    start = jnp.minimum(i * width, head.shape[1] - width)
    columns = start + jnp.arange(width)[None]
    part = jax.lax.dynamic_slice_in_dim(head, start, width, axis=1).astype(rows.dtype)
    wide = jnp.promote_types(rows.dtype, jnp.float32)
    logits = jnp.dot(rows, part, preferred_element_type=wide)
    return start, columns, columns >= i * width, logits


chunked_cross_entropy.defvjp(_forward, _backward)

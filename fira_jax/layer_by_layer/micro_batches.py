"""A batch in pieces, one after the other, to bound the activations of one layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def in_pieces(f: Callable[[Any], Any], pieces: int, x: Any) -> Any:
    """``f`` on ``pieces`` of ``x``, one after the other."""
    return f(x) if pieces == 1 else _joined(jax.lax.map(f, _split(x, pieces)))


def summed_vjp(
    block: Callable[[Any, Any], Any], pieces: int, layer: Any, x: Any, dx: Any
) -> tuple[Any, Any]:
    """Gradients of ``block`` for its weights, summed over the pieces, and for its input."""

    def vjp(x: Any, dx: Any) -> tuple[Any, Any]:
        return jax.vjp(block, layer, x)[1](dx)

    if pieces == 1:
        return vjp(x, dx)

    def add(total: Any, piece: Any) -> tuple[Any, Any]:
        grads, dx = vjp(*piece)
        return jax.tree.map(lambda t, g: t + g.astype(t.dtype), total, grads), dx

    zeros = jax.tree.map(
        lambda w: jnp.zeros(w.shape, jnp.promote_types(w.dtype, jnp.float32)), layer
    )
    total, dx = jax.lax.scan(add, zeros, _split((x, dx), pieces))
    return jax.tree.map(lambda t, w: t.astype(w.dtype), total, layer), _joined(dx)


def _split(x: Any, pieces: int) -> Any:
    return jax.tree.map(lambda a: a.reshape(pieces, -1, *a.shape[1:]), x)


def _joined(x: Any) -> Any:
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), x)

"""Sums of squares, in float32 or wider whatever the dtype of the entries."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def column_energy(x: jax.Array, axis: int = -2) -> jax.Array:
    """Sum of squares along ``axis`` in float32 or wider: ``[..., a, b] -> [..., 1, b]``."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jnp.expand_dims(jnp.sum(jnp.square(wide), axis), -2)


def frobenius_norm(x: jax.Array) -> jax.Array:
    """The norm of each matrix in float32 or wider, ``[*batch, r, b] -> [*batch]``."""
    return jnp.sqrt(jnp.sum(column_energy(x), axis=(-2, -1)))

"""Products of matrices as a TPU's compiler takes them quickly."""

from __future__ import annotations

import jax
import jax.numpy as jnp

COLUMNS = 128
"""As wide as a TPU's matrix unit."""


def product(x: jax.Array, y: jax.Array) -> jax.Array:
    """``x @ y`` of two matrices; of many columns, on a TPU, in blocks of them.

    A TPU's compiler unrolls a product over all of the fast memory that a kernel may take; two of
    them in float32, with thousands of rows, took it longer than AdamW's update of a whole model.
    """
    if y.shape[1] < 2 * COLUMNS:
        return x @ y
    return jax.lax.platform_dependent(x, y, tpu=in_blocks, default=jnp.matmul)


def in_blocks(x: jax.Array, y: jax.Array) -> jax.Array:
    """``x @ y``, ``COLUMNS`` of them at a time."""
    columns = y.shape[1]

    def put(i: jax.typing.ArrayLike, found: jax.Array) -> jax.Array:
        # A slice that would pass the end begins earlier: some columns are found twice.
        block = x @ jax.lax.dynamic_slice_in_dim(y, i * COLUMNS, COLUMNS, axis=1)
        return jax.lax.dynamic_update_slice_in_dim(found, block, i * COLUMNS, axis=1)

    found = jnp.zeros((x.shape[0], columns), jnp.result_type(x, y))
    return jax.lax.fori_loop(0, -(-columns // COLUMNS), put, found)

"""A number for every array of a state, to tell whether what is read is what was saved."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def checksums(state: Any) -> dict[str, list[Any]]:
    """Dtype, shape and a 32-bit checksum of every array, by its path.

    Computed where the arrays are. Integers are added, which no order of devices changes, so the
    sum is the same on every mesh; and each number enters through a bijection that its place
    chooses, so that one changed number, wherever it is, always changes the sum.
    """
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    sums = np.asarray(_sums([leaf for _, leaf in leaves]))
    return {
        jax.tree_util.keystr(path): [str(leaf.dtype), list(leaf.shape), int(total)]
        for (path, leaf), total in zip(leaves, sums, strict=True)
    }


@jax.jit
def _sums(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([_sum(x) for x in leaves])


def _sum(x: jax.Array) -> jax.Array:
    if x.dtype == bool or x.dtype.itemsize == 1:  # also the 4-bit types, which are stored in bytes
        words = x.astype(jnp.uint8) if x.dtype.kind in "bu" else _words(x)
    else:
        words = _words(x)
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis in range(words.ndim):
        along = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        place = _mix(place * jnp.uint32(words.shape[axis] % 2**32) + along)
    return jnp.sum(_mix(words.astype(jnp.uint32) ^ place), dtype=jnp.uint32)


def _words(x: jax.Array) -> jax.Array:
    """Bits as unsigned integers of at most 32 bits."""
    bits = (
        jnp.finfo(x.dtype).bits if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.iinfo(x.dtype).bits
    )
    return jax.lax.bitcast_convert_type(x, f"uint{min(bits, 32)}")


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of 32-bit integers that spreads every bit: shifts and odd factors."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)

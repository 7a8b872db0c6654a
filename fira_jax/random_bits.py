"""Random numbers that depend on a step and a position only, so that no state holds a key.

Nor do they depend on JAX's settings of random numbers, which a resumed run might find changed.
"""

from __future__ import annotations

import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np


def random_bits(
    seed: jax.typing.ArrayLike,
    step: jax.typing.ArrayLike,
    name: str | jax.typing.ArrayLike,
    shape: tuple[int, ...],
    first_row: jax.typing.ArrayLike = 0,
) -> jax.Array:
    """Independent uint32 numbers, by hashing ``seed``, ``step``, ``name`` and each position.

    A handful of integer operations for each number, which the compiler fuses with whatever uses
    it: nothing of ``shape`` is stored, and under a partitioner every device makes its own share.

    Args:
      seed: a whole number.
      step: a whole number, such as the count of steps taken.
      name: what the numbers are for, such as a parameter's path, or its :func:`word`.
      shape: how many.
      first_row: which of the rows of a larger array, all axes but the last in one, comes first.
    """
    salt = jnp.asarray(word(name) if isinstance(name, str) else name)
    for other in (seed, step):
        salt = mixed(salt * jnp.uint32(0x9E3779B1) ^ jnp.asarray(other).astype(jnp.uint32))
    rows = math.prod(shape[:-1])
    plane = (rows, shape[-1]) if shape else (1, 1)
    row, column = (jax.lax.broadcasted_iota(jnp.uint32, plane, i) for i in (0, 1))
    row += jnp.asarray(first_row).astype(jnp.uint32)
    x = (row * jnp.uint32(0x9E3779B1) ^ salt) + (column * jnp.uint32(0x85EBCA77) ^ mixed(~salt))
    return mixed(x).reshape(shape)


def word(name: str) -> np.uint32:
    """A name as one number: work for several names is then one program."""
    return np.uint32(zlib.crc32(name.encode()))


def uniform(bits: jax.Array) -> jax.Array:
    """Random bits as float32 numbers in [0, 1)."""
    return (bits >> 8).astype(jnp.float32) * 2.0**-24


def key_of(seed: jax.typing.ArrayLike, step: jax.typing.ArrayLike) -> jax.Array:
    """A key of ``jax.random`` for a step, of one kind always."""
    return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), step)


def words_of(key: jax.Array) -> jax.Array:
    """The words of a key, which seed :func:`hashed`."""
    return jax.random.key_data(key)


def hashed(seed: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Independent uint32 numbers, of a matrix, by hashing each position with two words."""
    row, column = (jax.lax.broadcasted_iota(jnp.uint32, shape, i) for i in (0, 1))
    return mixed(
        (row * jnp.uint32(0x9E3779B1) ^ seed[0]) + (column * jnp.uint32(0x85EBCA77) ^ seed[-1])
    )


def normal(bits: jax.Array) -> jax.Array:
    """Random bits as float32 numbers of a normal distribution, up to 5.2 from zero."""
    # In the middle of 2^23 parts of (-1, 1), so that neither end, which is infinite, is reached.
    middle = ((bits >> 9).astype(jnp.float32) + 0.5) * 2.0**-22 - 1
    return math.sqrt(2) * jax.lax.erf_inv(middle)


def mixed(x: jax.Array) -> jax.Array:
    """A bijection of 32-bit words in which every input bit sways every output bit."""
    for shift, multiplier in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> shift)) * jnp.uint32(multiplier)
    return x ^ (x >> 16)

"""Arrays as codes of 8 or 4 bits: by their logarithm for moments, linearly for bases and weights.

Both share a scale among the numbers of a block, and consist of arithmetic alone: no table is looked
up, so that the compiler fuses a code with what makes or reads it, and a partitioner splits it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fira_jax.random_bits import uniform

_LEVELS_PER_OCTAVE = 8


def blocks(x: jax.Array, size: int) -> jax.Array:
    """Cuts the last axis, filled up with zeros: ``[..., n] -> [..., ceil(n / size), size]``."""
    fill = -x.shape[-1] % size
    if fill:
        x = jnp.pad(x, [*[(0, 0)] * (x.ndim - 1), (0, fill)])
    return x.reshape(*x.shape[:-1], x.shape[-1] // size, size)


def unblocks(x: jax.Array, n: int) -> jax.Array:
    """Undoes :func:`blocks`: ``[..., count, size] -> [..., n]``."""
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])[..., :n]


def encode_log(x: jax.Array, random: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    r"""Codes of 8 bits for blocks ``[..., size]`` whose entries span many orders of magnitude.

    Levels are :math:`2^{1/8}` apart (9 %), down from the largest magnitude of the block. A block
    with a negative entry spends one bit on signs and its levels reach down by 15.75 octaves, one
    without, such as second moments, by 31.75. So the root of a second moment reaches exactly as
    deep as the first moment, and since a second moment above zero never gets the code of zero,
    :math:`m / \sqrt v` cannot blow up where both are too small for their codes.

    Args:
      x: numbers.
      random: random bits of its shape to round up or down at random, right on average, rather
        than to the nearest. An average that moves by less than half a level a step (a second
        moment moves by 0.1 %) would never leave its level otherwise.

    Returns:
      The codes, uint8 of the same shape, and scales ``[..., 1]``, float32: the largest magnitude,
      negated where the block has signs.
    """
    x = x.astype(jnp.float32)
    signed = jnp.any(x < 0, axis=-1, keepdims=True)
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    # One over a subnormal number is infinite; a block of nothing else counts as zero.
    usable = largest >= jnp.finfo(jnp.float32).tiny
    share = jnp.where(usable, jnp.abs(x) / jnp.where(usable, largest, 1), 0)
    top = jnp.where(signed, 127.0, 255.0)
    # Whatever lies far below the first level, zero with it, counts as if just there.
    place = top + _LEVELS_PER_OCTAVE * jnp.log2(jnp.maximum(share, 2.0**-64))
    below = jnp.floor(place)
    step = 2 ** (1 / _LEVELS_PER_OCTAVE) - 1
    to_next = (jnp.exp2((place - below) / _LEVELS_PER_OCTAVE) - 1) / step
    under = place < 1  # between zero and the first level
    to_next = jnp.where(under, jnp.exp2((place - 1) / _LEVELS_PER_OCTAVE), to_next)
    threshold = 0.5 if random is None else uniform(random)
    code = jnp.where(under, 0, below) + ((to_next > threshold) & (share > 0))
    code = jnp.where(signed, code, jnp.maximum(code, share > 0))
    code = jnp.minimum(code, top) + jnp.where(x < 0, 128, 0)
    return code.astype(jnp.uint8), jnp.where(signed, -largest, largest)


def decode_log(codes: jax.Array, scales: jax.Array) -> jax.Array:
    """The float32 numbers that the codes of :func:`encode_log` stand for."""
    signed = scales < 0
    level = jnp.where(signed, codes & 127, codes).astype(jnp.float32)
    top = jnp.where(signed, 127.0, 255.0)
    share = jnp.where(level > 0, jnp.exp2((level - top) / _LEVELS_PER_OCTAVE), 0)
    return share * jnp.where(signed & (codes >= 128), scales, jnp.abs(scales))


class Linear(NamedTuple):
    """Blocks of numbers ``spacing * (codes - origin)``.

    Attributes:
      codes: uint8 ``[..., size * bits / 8]``; codes of 4 bits are packed two in a byte.
      spacing: float32 ``[..., 1]``, the distance between neighbouring levels.
      origin: uint8 ``[..., 1]``, the code of 0.
    """

    codes: jax.Array
    spacing: jax.Array
    origin: jax.Array


def encode_linear(x: jax.Array, bits: int, random: jax.Array | None = None) -> Linear:
    """Codes of 8 or 4 bits for blocks ``[..., size]``, levels evenly spread over their range.

    Zero is in the range always and is a level, so that a block of one sign keeps its values and
    filling one up with zeros costs nothing.

    Args:
      x: numbers.
      bits: 8 or 4.
      random: random bits of its shape to round up or down at random, right on average, rather
        than to the nearest. The spacing is then 4, 5, 6 or 7 times a power of two: values that are
        encoded again and again, and hardly change, meet the same levels and, being exact multiples,
        stay where they are. Were it to follow their range, each time would spread all of them anew.
    """
    x = x.astype(jnp.float32)
    top = 2**bits - 1
    low, high = (reach(x, axis=-1, keepdims=True, initial=0.0) for reach in (jnp.min, jnp.max))
    if random is None:
        spacing = _unless_zero((high - low) / top)
        origin = jnp.round(-low / spacing)
        levels = jnp.round(x / spacing)
    else:
        # One level less, so that neither end is cut off, which would not be right on average.
        part, power = jnp.frexp(_unless_zero((high - low) / (top - 1)))
        spacing = jnp.ldexp(jnp.ceil(8 * part) / 8, power)
        origin = jnp.ceil(-low / spacing)
        # The remainder is exact, whatever the division is: a number on a level must not leave it.
        nearest = jnp.round(x / spacing)
        levels = nearest + jnp.floor((x - nearest * spacing) / spacing + uniform(random))
    codes = jnp.clip(levels + origin, 0, top).astype(jnp.uint8)
    if bits == 4:
        first, second = jnp.split(codes, 2, axis=-1)
        codes = first | second << 4
    return Linear(codes, spacing, origin.astype(jnp.uint8))


def decode_linear(stored: Linear, bits: int) -> jax.Array:
    """The float32 numbers ``[..., size]`` that the codes stand for."""
    codes = stored.codes
    if bits == 4:
        codes = jnp.concatenate([codes & 15, codes >> 4], axis=-1)
    return stored.spacing * (codes.astype(jnp.float32) - stored.origin.astype(jnp.float32))


def _unless_zero(spacing: jax.Array) -> jax.Array:
    return jnp.where(spacing >= jnp.finfo(spacing.dtype).tiny, spacing, 1)

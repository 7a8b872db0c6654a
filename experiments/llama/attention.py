"""Causal attention with rotary positions; axes are named as in `model.py`."""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

Rope = tuple[jax.Array, jax.Array]  # cosines and sines, each float32 [L, C/2]


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How a checkpoint stretches its rotary wavelengths beyond the context it was trained on.

    Attributes:
        rope_type: ``"linear"`` divides every frequency by ``factor``. ``"llama3"`` divides only
            those whose wavelength exceeds the original context over ``low_freq_factor``, leaves
            those below the original context over ``high_freq_factor``, and goes from one to the
            other between.
        factor: The divisor, at least 1.
        low_freq_factor: Only for ``"llama3"``, like the following.
        high_freq_factor: Larger than ``low_freq_factor``.
        original_max_position_embeddings: Tokens of the original context.

    Raises:
        ValueError: If a value is out of range.
    """

    rope_type: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def __post_init__(self):
        if self.rope_type not in ("linear", "llama3"):
            raise ValueError(
                f"rope_type is {self.rope_type!r}, only 'default', 'linear' and 'llama3' are "
                "supported"
            )
        if not self.factor >= 1:
            raise ValueError(f"rope factor must be at least 1, got {self.factor}")
        if not self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                f"rope low_freq_factor must be below high_freq_factor, got {self.low_freq_factor} "
                f"and {self.high_freq_factor}"
            )

    def stretch(self, frequency: np.ndarray) -> np.ndarray:
        """The frequencies, in radians a token, after stretching."""
        if self.rope_type == "linear":
            return frequency / self.factor
        turns = self.original_max_position_embeddings * frequency / (2 * math.pi)
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = np.clip(kept, 0, 1)
        return kept * frequency + (1 - kept) * frequency / self.factor


def rope_table(
    length: int, head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> Rope:
    """Cosines and sines of the rotary angles of positions 0 … length−1, float32 [L, C/2]."""
    exact = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    frequency = np.float32(scaling.stretch(exact) if scaling else exact)
    angle = jnp.arange(length, dtype=jnp.float32)[:, None] * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BxLxHxC: jax.Array, rope: Rope) -> jax.Array:
    """Rotates channel c of every head together with channel c + C/2 (Hugging Face's pairing)."""
    cos, sin = (table[:, None, :] for table in rope)
    left, right = jnp.split(x_BxLxHxC.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    return rotated.astype(x_BxLxHxC.dtype)


def causal_attention(
    q_BxLxHxC: jax.Array,
    k_BxLxKxC: jax.Array,
    v_BxLxKxC: jax.Array,
    blocks: int = 2,
    remat: bool = False,
    segments_BxL: jax.Array | None = None,
) -> jax.Array:
    """Softmax attention in which no position sees a later one.

    Queries go in blocks, and a block looks at no key past its own end: two blocks leave out a
    quarter of the scores that a mask over the full square would compute and throw away. More
    blocks leave out more, up to a half, but take longer to compile.

    With ``remat`` the blocks go through a loop, each looking at all keys: the scores of one block
    exist at a time. (Blocks written out one by one leave that to the compiler, and XLA's for GPUs
    has several exist together.)

    Args:
        q_BxLxHxC: Rotated queries.
        k_BxLxKxC: Rotated keys; each is shared by H/K consecutive query heads.
        v_BxLxKxC: Values.
        blocks: Number of query blocks.
        remat: Recompute each block's scores in the backward pass instead of keeping them all.
        segments_BxL: Which of the texts packed into a row each position belongs to; none sees
            another. (Rotary positions are relative: they need not begin anew.)

    Returns:
        Mixed values [B, L, H, C].
    """
    B, L, H, C = q_BxLxHxC.shape
    K = k_BxLxKxC.shape[2]
    q_BxKxGxLxC = q_BxLxHxC.reshape(B, L, K, H // K, C).transpose(0, 2, 3, 1, 4)
    k_BxKx1xCxL = k_BxLxKxC.transpose(0, 2, 3, 1)[:, :, None]
    v_BxKx1xLxC = v_BxLxKxC.transpose(0, 2, 1, 3)[:, :, None]
    size = -(-L // blocks)

    def attend(
        q: jax.Array, own: jax.Array | None, end: int, start: jax.typing.ArrayLike
    ) -> jax.Array:
        k, v = k_BxKx1xCxL[..., :end], v_BxKx1xLxC[..., :end, :]
        scores = jnp.matmul(q, k, preferred_element_type=jnp.float32)
        visible = np.arange(q.shape[-2])[:, None] + start >= np.arange(end)
        if own is not None and segments_BxL is not None:
            same_Bx1x1xSxL = own[:, None, None, :, None] == segments_BxL[:, None, None, None, :end]
            visible = visible & same_Bx1x1xSxL
        weights = jax.nn.softmax(jnp.where(visible, scores * C**-0.5, -jnp.inf))
        return jnp.matmul(weights.astype(v.dtype), v)

    if remat:
        missing = blocks * size - L
        padded = jnp.pad(q_BxKxGxLxC, ((0, 0), (0, 0), (0, 0), (0, missing), (0, 0)))
        q_NxBxKxGxSxC = jnp.moveaxis(padded.reshape(B, K, H // K, blocks, size, C), 3, 0)
        own_NxBxS = None
        if segments_BxL is not None:
            own_BxL = jnp.pad(segments_BxL, ((0, 0), (0, missing)), mode="edge")
            own_NxBxS = jnp.moveaxis(own_BxL.reshape(B, blocks, size), 1, 0)
        one = jax.checkpoint(lambda block: attend(block[0], block[1], L, block[2]))
        mixed_NxBxKxGxSxC = jax.lax.map(one, (q_NxBxKxGxSxC, own_NxBxS, size * jnp.arange(blocks)))
        padded = jnp.moveaxis(mixed_NxBxKxGxSxC, 0, 3).reshape(padded.shape)
        mixed_BxKxGxLxC = padded[..., :L, :]
    else:
        spans = [(start, min(start + size, L)) for start in range(0, L, size)]
        mixed_BxKxGxLxC = jnp.concatenate(
            [
                attend(
                    q_BxKxGxLxC[..., start:end, :],
                    None if segments_BxL is None else segments_BxL[:, start:end],
                    end,
                    start,
                )
                for start, end in spans
            ],
            axis=-2,
        )
    return mixed_BxKxGxLxC.transpose(0, 3, 1, 2, 4).reshape(B, L, H, C)

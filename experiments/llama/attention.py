"""Causal attention with rotary positions; axes are named as in `model.py`."""

import jax
import jax.numpy as jnp
import numpy as np

Rope = tuple[jax.Array, jax.Array]  # cosines and sines, each float32 [L, C/2]


def rope_table(length: int, head_dim: int, theta: float) -> Rope:
    """Cosines and sines of the rotary angles of positions 0 … length−1, float32 [L, C/2]."""
    frequency = np.float32(theta ** (-np.arange(0, head_dim, 2) / head_dim))
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

    Returns:
        Mixed values [B, L, H, C].
    """
    B, L, H, C = q_BxLxHxC.shape
    K = k_BxLxKxC.shape[2]
    q_BxKxGxLxC = q_BxLxHxC.reshape(B, L, K, H // K, C).transpose(0, 2, 3, 1, 4)
    k_BxKx1xCxL = k_BxLxKxC.transpose(0, 2, 3, 1)[:, :, None]
    v_BxKx1xLxC = v_BxLxKxC.transpose(0, 2, 1, 3)[:, :, None]
    size = -(-L // blocks)

    def attend(q: jax.Array, end: int, start: jax.typing.ArrayLike) -> jax.Array:
        k, v = k_BxKx1xCxL[..., :end], v_BxKx1xLxC[..., :end, :]
        scores = jnp.matmul(q, k, preferred_element_type=jnp.float32)
        visible = np.arange(q.shape[-2])[:, None] + start >= np.arange(end)
        weights = jax.nn.softmax(jnp.where(visible, scores * C**-0.5, -jnp.inf))
        return jnp.matmul(weights.astype(v.dtype), v)

    if remat:
        missing = blocks * size - L
        padded = jnp.pad(q_BxKxGxLxC, ((0, 0), (0, 0), (0, 0), (0, missing), (0, 0)))
        q_NxBxKxGxSxC = jnp.moveaxis(padded.reshape(B, K, H // K, blocks, size, C), 3, 0)
        one = jax.checkpoint(lambda q_and_start: attend(q_and_start[0], L, q_and_start[1]))
        mixed_NxBxKxGxSxC = jax.lax.map(one, (q_NxBxKxGxSxC, size * jnp.arange(blocks)))
        padded = jnp.moveaxis(mixed_NxBxKxGxSxC, 0, 3).reshape(padded.shape)
        mixed_BxKxGxLxC = padded[..., :L, :]
    else:
        spans = [(start, min(start + size, L)) for start in range(0, L, size)]
        mixed_BxKxGxLxC = jnp.concatenate(
            [attend(q_BxKxGxLxC[..., start:end, :], end, start) for start, end in spans], axis=-2
        )
    return mixed_BxKxGxLxC.transpose(0, 3, 1, 2, 4).reshape(B, L, H, C)

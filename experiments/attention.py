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

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, start: int) -> jax.Array:
        scores = jnp.matmul(q, k, preferred_element_type=jnp.float32)
        queries, keys = scores.shape[-2:]
        visible = np.tri(queries, keys, start, dtype=bool)
        weights = jax.nn.softmax(jnp.where(visible, scores * C**-0.5, -jnp.inf))
        return jnp.matmul(weights.astype(v.dtype), v)

    if remat:
        attend = jax.checkpoint(attend, static_argnums=3)
    mixed = []
    for start in range(0, L, size):
        end = min(start + size, L)
        q, k, v = q_BxKxGxLxC[..., start:end, :], k_BxKx1xCxL[..., :end], v_BxKx1xLxC[..., :end, :]
        if remat and mixed:
            # One block after the other, backwards too: XLA's GPU compiler would begin them all.
            q, mixed[-1] = jax.lax.optimization_barrier((q, mixed[-1]))
        mixed.append(attend(q, k, v, start))
    mixed_BxKxGxLxC = jnp.concatenate(mixed, axis=-2)
    return mixed_BxKxGxLxC.transpose(0, 3, 1, 2, 4).reshape(B, L, H, C)

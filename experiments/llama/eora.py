"""EoRA: a low-rank path beside a compressed weight, best for the inputs that it really gets."""

import jax
import jax.numpy as jnp


def second_moment(inputs: jax.Array) -> jax.Array:
    """Mean of ``x^T x`` over inputs [..., in]: all that :func:`compensate` needs of them."""
    x = inputs.reshape(-1, inputs.shape[-1]).astype(jnp.float32)
    return x.T @ x / len(x)


def compensate(
    kernel: jax.Array, compressed: jax.Array, moment: jax.Array, rank: int, *, eps: float = 1e-6
) -> tuple[jax.Array, jax.Array]:
    """Factors that undo most of what compression did to a layer's outputs.

    Of all ``A [in, r]``, ``B [r, out]`` these minimize ``E |x (W - W' - A B)|^2``. With the inputs'
    second moment ``Q L Q^T`` that is the truncated SVD of ``sqrt(L) Q^T (W - W')``, taken back by
    ``Q / sqrt(L)``. No training is needed.

    Args:
        kernel: ``W``, [in, out].
        compressed: ``W'``, what pruning or quantization made of it.
        moment: The inputs' second moment [in, in], see :func:`second_moment`.
        rank: ``r``.
        eps: Eigenvalues below this share of the largest count as that: directions hardly seen.

    Raises:
        ValueError: If shapes do not fit, or the rank is above the kernel's smaller side.

    References:
        Liu et al., EoRA: Fine-tuning-free Compensation for Compressed LLM with Eigenspace Low-Rank
        Approximation, https://arxiv.org/abs/2410.21271.
    """
    if compressed.shape != kernel.shape or moment.shape != (kernel.shape[0],) * 2:
        raise ValueError(
            f"a kernel {kernel.shape} needs a compressed one of its shape and a moment of "
            f"{(kernel.shape[0],) * 2}, got {compressed.shape} and {moment.shape}"
        )
    if not 1 <= rank <= min(kernel.shape):
        raise ValueError(f"rank must be from 1 to {min(kernel.shape)}, got {rank}")
    values, vectors = jnp.linalg.eigh(moment.astype(jnp.float32))
    roots = jnp.sqrt(jnp.maximum(values, eps * values[-1]))
    error = (kernel - compressed).astype(jnp.float32)
    left, singular, right = jnp.linalg.svd(roots[:, None] * (vectors.T @ error), False)
    a = vectors @ (left[:, :rank] / roots[:, None])
    b = singular[:rank, None] * right[:rank]
    return a.astype(kernel.dtype), b.astype(kernel.dtype)

"""PELA: low-rank kernels from trained ones, taught to give the same features."""

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.llama.factorized import Factorized


def low_rank_start(kernel: jax.Array, rank: int) -> Factorized:
    """The best ``A B`` for a trained kernel, singular values shared evenly by the factors."""
    left, values, right = jnp.linalg.svd(kernel.astype(jnp.float32), full_matrices=False)
    roots = jnp.sqrt(values[:rank])
    inputs, outputs = kernel.shape
    layer = Factorized(inputs, outputs, rank, rngs=nnx.Rngs(0), dtype=kernel.dtype)
    layer.a[...] = (left[:, :rank] * roots).astype(kernel.dtype)
    layer.b[...] = (roots[:, None] * right[:rank]).astype(kernel.dtype)
    return layer


def distillation_loss(found: jax.Array, wanted: jax.Array) -> jax.Array:
    """Mean squared difference of a student's features from its teacher's, relative to their size.

    Args:
        found: Of the model with low-rank kernels, such as ``Llama.hidden`` gives.
        wanted: Of the model it came from, for the same tokens; no gradient reaches it.

    References:
        Guo et al., PELA: Learning Parameter-Efficient Models with Low-Rank Approximation,
        https://arxiv.org/abs/2310.10700. They compare the features of every layer: add one such
        term for each. :func:`perturbation` is their second term.
    """
    wanted = jax.lax.stop_gradient(wanted.astype(jnp.float32))
    return jnp.mean(jnp.square(found - wanted)) / jnp.mean(jnp.square(wanted))


def perturbation(layer: Factorized, kernel: jax.Array) -> jax.Array:
    """Squared distance of a layer's weight from the trained one, relative to its size."""
    wanted = jax.lax.stop_gradient(kernel.astype(jnp.float32))
    return jnp.sum(jnp.square(layer.merged() - wanted)) / jnp.sum(jnp.square(wanted))

"""PELA: a model whose kernels are low-rank from a trained one, taught to give the same features."""

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.llama.factorized import Factorized
from experiments.llama.model import Llama


def low_rank_start(kernel: jax.Array, rank: int) -> Factorized:
    """The best ``A B`` for a trained kernel, singular values shared evenly by the factors."""
    left, values, right = jnp.linalg.svd(kernel.astype(jnp.float32), full_matrices=False)
    roots = jnp.sqrt(values[:rank])
    inputs, outputs = kernel.shape
    layer = Factorized(inputs, outputs, rank, rngs=nnx.Rngs(0), dtype=kernel.dtype)
    layer.a[...] = (left[:, :rank] * roots).astype(kernel.dtype)
    layer.b[...] = (roots[:, None] * right[:rank]).astype(kernel.dtype)
    return layer


def factorize(model: Llama, rank: int) -> None:
    """Replaces all kernels of attention and MLP, in place, by :func:`low_rank_start`."""
    build = nnx.vmap(lambda kernel: low_rank_start(kernel, min(rank, *kernel.shape)))
    for block in (model.layers.attn, model.layers.mlp):
        for key, value in list(vars(block).items()):
            if isinstance(value, nnx.Param):
                setattr(block, key, build(value[...]))


def distillation_loss(student: Llama, teacher: Llama, tokens: jax.Array) -> jax.Array:
    """Mean squared difference of the two models' features, relative to the teacher's size.

    Features are the residual stream after the last layer: what everything else is made of.

    Args:
        student: Trained.
        teacher: The model it came from; no gradient reaches it.
        tokens: [B, L].

    References:
        Guo et al., PELA: Learning Parameter-Efficient Models with Low-Rank Approximation,
        https://arxiv.org/abs/2310.10700. They compare the features of every layer, here only the
        last ones are; add :func:`perturbation` for their second term.
    """
    wanted = jax.lax.stop_gradient(teacher.hidden(tokens).astype(jnp.float32))
    found = student.hidden(tokens).astype(jnp.float32)
    return jnp.mean(jnp.square(found - wanted)) / jnp.mean(jnp.square(wanted))


def perturbation(layer: Factorized, kernel: jax.Array) -> jax.Array:
    """Squared distance of a layer's weight from the trained one, relative to its size."""
    wanted = jax.lax.stop_gradient(kernel.astype(jnp.float32))
    return jnp.sum(jnp.square(layer.merged() - wanted)) / jnp.sum(jnp.square(wanted))

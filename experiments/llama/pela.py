"""PELA: low-rank kernels from trained ones, taught to give the same features."""

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.llama.adapters import Frozen
from experiments.llama.factorized import Factorized


class PELA(Factorized):
    """``y = x A B`` from the best factors of a trained kernel, which stays beside them to teach.

    While ``teaching`` is true, see ``nnx.Module.set_attributes``, the layer is the teacher's.

    Args:
        kernel: The trained weight, [in, out].
        rank: ``r``.

    References:
        Guo et al., PELA: Learning Parameter-Efficient Models with Low-Rank Approximation,
        https://arxiv.org/abs/2310.10700. There the student first learns the features of every
        layer, on much data; a model's loss here is the task's and those of its last layer.
    """

    teaching = False

    def __init__(self, kernel: jax.Array, rank: int):
        inputs, outputs = kernel.shape
        super().__init__(inputs, outputs, rank, rngs=nnx.Rngs(0), dtype=kernel.dtype)
        self.start_at(kernel)
        self.kernel = Frozen(kernel)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., in] to [..., out]."""
        return x @ self.kernel[...] if self.teaching else super().__call__(x)

    def perturbation(self) -> jax.Array:
        """Squared distance of the weight from the trained one, relative to its size."""
        wanted = self.kernel[...].astype(jnp.float32)
        return jnp.sum(jnp.square(self.merged() - wanted)) / jnp.sum(jnp.square(wanted))


def distillation_loss(found: jax.Array, wanted: jax.Array) -> jax.Array:
    """Mean squared difference of a student's features from its teacher's, relative to their size.

    Args:
        found: Of the model with low-rank kernels, such as ``Llama.hidden`` gives.
        wanted: Of the model it came from, for the same tokens; no gradient reaches it.
    """
    wanted = jax.lax.stop_gradient(wanted.astype(jnp.float32))
    return jnp.mean(jnp.square(found - wanted)) / jnp.mean(jnp.square(wanted))

"""LoRA-GGPO: weights shaken while they are trained, more where norms are large."""

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.llama.adapters import Frozen, LoRA
from experiments.llama.draws import Drawing


class LoRAGGPO(LoRA, Drawing):
    """A LoRA that sees, in training, its weight with noise of a size of its own for each output.

    The noise of output unit j is normal with the standard deviation
    ``sigma / sqrt(in) * (beta * |w_j| + (1 - beta) * |g_j|)``: of the norms of that unit's merged
    weights and of their gradient. The latter is an average that :meth:`observe` takes from what
    Adam knows of the gradient of ``B``.

    Args:
        kernel: As for :class:`LoRA`, like all others.
        rank: ``r``.
        sigma: Size of the noise; 0 is LoRA.
        beta: Share of the weight's norm.
        rngs: Draws ``A`` and the noise.
        **further: ``alpha``, ``rank_stabilised``.

    References:
        Chang et al., LoRA-GGPO: Mitigating Double Descent in LoRA Fine-Tuning via Gradient-Guided
        Perturbation Optimization, https://arxiv.org/abs/2502.14538 (first version). Readings, since
        only its abstract was at hand: how the two norms are weighed, and that the gradient's norm
        is estimated by that of ``s A^T G``, the gradient of ``B``, brought to the scale of the
        weight's norm by the ratio of their means.
    """

    def __init__(
        self,
        kernel: jax.Array,
        rank: int,
        *,
        sigma: float = 0.05,
        beta: float = 0.5,
        rngs: nnx.Rngs,
        **further,
    ):
        super().__init__(kernel, rank, rngs=rngs, **further)
        self.begin_drawing(rngs)
        self.gradient_norm = Frozen(jnp.zeros(kernel.shape[1], jnp.float32))
        self.sigma, self.beta = sigma, beta

    def observe(self, squares: jax.Array) -> None:
        """Takes Adam's average of the squared gradient of ``B`` [r, out]: its norms."""
        self.gradient_norm[...] = jnp.sqrt(jnp.sum(squares.astype(jnp.float32), axis=0))

    def deviation(self) -> jax.Array:
        """Standard deviation of each output unit's noise, [out]."""
        kernel = jax.lax.stop_gradient(self.merged().astype(jnp.float32))
        of_weight, of_gradient = jnp.linalg.norm(kernel, axis=0), self.gradient_norm[...]
        mean = jnp.mean(of_gradient)
        scale = jnp.where(mean > 0, jnp.mean(of_weight) / jnp.where(mean > 0, mean, 1), 0)
        norm = self.beta * of_weight + (1 - self.beta) * scale * of_gradient
        return self.sigma * norm / kernel.shape[0] ** 0.5

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., in] to [..., out]; while it is trained, by a weight with noise."""
        y = super().__call__(x)
        if not self.training:
            return y
        noise = jax.random.normal(self.key, self.kernel.shape, jnp.float32)
        return y + x @ (noise * self.deviation()).astype(x.dtype)

"""SoRA: a LoRA whose rank shrinks while it is trained, by a gate between its factors."""

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.llama.adapters import LoRA


class SoRA(LoRA):
    """``y = x (W + s A diag(g) B)``, whose gate ``g [r]`` is trained to have zeros.

    End the optimizer with ``fira_jax.transforms.proximal_l1(learning_rate, penalty)``: it knows the
    gate by its name. What it has made zero is left out by :meth:`pruned`.

    Args:
        kernel: As for :class:`LoRA`, like all others.
        rank: The largest rank it may keep.
        **further: ``alpha``, ``rank_stabilised``, ``rngs``.

    References:
        Ding et al., Sparse Low-rank Adaptation of Pre-trained Language Models,
        https://arxiv.org/abs/2311.11696. Their gate begins at random; here at one, so that the
        layer begins as a LoRA does.
    """

    def __init__(self, kernel: jax.Array, rank: int, **further):
        super().__init__(kernel, rank, **further)
        self.gate = nnx.Param(jnp.ones(rank, kernel.dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., in] to [..., out]."""
        inside = ((x @ self.lora_a[...]) * self.gate[...]) @ self.lora_b[...]
        return x @ self.kernel[...] + self.scaling * inside

    def merged(self) -> jax.Array:
        """The one kernel that does the same."""
        product = (self.lora_a[...] * self.gate[...]) @ self.lora_b[...]
        return self.kernel[...] + self.scaling * product

    def pruned(self) -> tuple[jax.Array, jax.Array]:
        """Factors ``A [in, k]``, ``B [k, out]`` of what the gate lets through, ``s`` included."""
        kept = jnp.flatnonzero(self.gate[...])
        a = self.scaling * self.lora_a[...] * self.gate[...]
        return a[:, kept], self.lora_b[...][kept]

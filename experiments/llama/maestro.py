"""Maestro: factors trained so that their first columns matter most, and cut where none is left."""

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.llama.draws import Drawing
from experiments.llama.factorized import Factorized


class Maestro(Factorized, Drawing):
    """``y = x A_{:k} B_{:k}`` with k drawn anew for every update in training, else ``y = x A B``.

    Since small k are drawn too, the first directions learn to do as much as they can alone: for
    data that is spread evenly the factors find the SVD of what they approximate.

    Args:
        inputs: As for :class:`Factorized`.
        outputs: Width of y.
        rank: ``r``.
        rngs: Draws the factors and every k.
        **further: ``dtype``.

    References:
        Horváth et al., Maestro: Uncovering Low-Rank Structures via Trainable Decomposition,
        https://arxiv.org/abs/2308.14929. Reading: k is uniform over 1 ... r.
    """

    def __init__(self, inputs: int, outputs: int, rank: int, *, rngs: nnx.Rngs, **further):
        super().__init__(inputs, outputs, rank, rngs=rngs, **further)
        self.begin_drawing(rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., in] to [..., out]; while it is trained, through the first k directions."""
        if not self.training:
            return super().__call__(x)
        rank = self.a.shape[1]
        kept = jax.random.randint(self.key, (), 1, rank + 1)
        return ((x @ self.a[...]) * (jnp.arange(rank) < kept)) @ self.b[...]

    def penalty(self) -> jax.Array:
        """The hierarchical group lasso: for every k the norms of all columns from k on.

        Added to the loss with some factor, it takes the last directions to zero first.
        """

        def tails(energy: jax.Array) -> jax.Array:
            sums = jnp.cumsum(energy[::-1])
            # A gradient of zero, not of infinity, where nothing is left.
            return jnp.sum(jnp.where(sums > 0, jnp.sqrt(jnp.where(sums > 0, sums, 1)), 0))

        return tails(jnp.sum(jnp.square(self.a[...]), 0)) + tails(
            jnp.sum(jnp.square(self.b[...]), 1)
        )

    def pruned(self, threshold: float) -> tuple[jax.Array, jax.Array]:
        """Factors without the directions whose column norms' product is at most ``threshold``."""
        sizes = jnp.linalg.norm(self.a[...], axis=0) * jnp.linalg.norm(self.b[...], axis=1)
        kept = jnp.flatnonzero(sizes > threshold)
        return self.a[...][:, kept], self.b[...][kept]

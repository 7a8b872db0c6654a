"""Layers whose weight is small from the start: low-rank factors, with or without a sparse part."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.llama.adapters import Frozen, kaiming


def balanced_factors(kernel: jax.Array, rank: int) -> tuple[jax.Array, jax.Array]:
    """The best ``A [in, r]``, ``B [r, out]`` for a kernel, which share singular values evenly."""
    left, values, right = jnp.linalg.svd(kernel.astype(jnp.float32), full_matrices=False)
    roots = jnp.sqrt(values[:rank])
    a, b = left[:, :rank] * roots, roots[:, None] * right[:rank]
    return a.astype(kernel.dtype), b.astype(kernel.dtype)


class Factorized(nnx.Module):
    """``y = x A B``: a weight of rank r; r (in + out) parameters.

    Args:
        inputs: Width of x.
        outputs: Width of y.
        rank: ``r``.
        rngs: Draws the factors.
        dtype: Of the factors.
    """

    def __init__(
        self, inputs: int, outputs: int, rank: int, *, rngs: nnx.Rngs, dtype: Any = jnp.float32
    ):
        # The product's entries get the variance 1 / (in + out).
        std = (rank * (inputs + outputs)) ** -0.25
        self.a = nnx.Param(std * jax.random.normal(rngs.params(), (inputs, rank), dtype))
        self.b = nnx.Param(std * jax.random.normal(rngs.params(), (rank, outputs), dtype))

    def start_at(self, kernel: jax.Array) -> None:
        """Makes ``A B`` the best approximation of a trained kernel."""
        self.a[...], self.b[...] = balanced_factors(kernel, self.a.shape[1])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., in] to [..., out]."""
        return (x @ self.a[...]) @ self.b[...]

    def merged(self) -> jax.Array:
        """The one kernel that does the same."""
        return self.a[...] @ self.b[...]


class CoLA(Factorized):
    """``y = silu(x A) B``: factors with a nonlinearity between, which no dense weight can replace.

    Args:
        inputs: As for :class:`Factorized`, like all others.
        outputs: Width of y.
        rank: ``r``.
        remat: Keep only the ``r``-wide activations for the backward pass (CoLA-M).
        **further: ``rngs``, ``dtype``.

    References:
        Liu et al., CoLA, https://arxiv.org/abs/2502.10940. Whether a model's own nonlinearity stays
        where it was is unverified, and up to the model.
    """

    def __init__(self, inputs: int, outputs: int, rank: int, *, remat: bool = False, **further):
        super().__init__(inputs, outputs, rank, **further)
        self.remat = remat

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., in] to [..., out]."""

        def up(inside: jax.Array, b: jax.Array) -> jax.Array:
            return jax.nn.silu(inside) @ b

        return (jax.checkpoint(up) if self.remat else up)(x @ self.a[...], self.b[...])

    def merged(self) -> jax.Array:
        """Not possible.

        Raises:
            TypeError: Always.
        """
        raise TypeError("CoLA has a nonlinearity between its factors: there is no merged kernel")


class SLTrain(nnx.Module):
    """``y = x (alpha / r A B + S)``, S sparse at places that are drawn once.

    r (in + out) parameters, and d in·out more at density d, whose places take an int32 each. The
    dense weight is made for each product and not kept for the backward pass.

    Args:
        inputs: Width of x.
        outputs: Width of y.
        rank: ``r``.
        density: Share of the weight's entries that S has.
        alpha: Weight of the product; 32 to 8 in the published runs, the less the larger the model.
        rngs: Draws everything.
        dtype: Of the parameters.

    References:
        Han et al., SLTrain, https://arxiv.org/abs/2406.02214.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        rank: int,
        *,
        density: float = 0.03,
        alpha: float = 16.0,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
    ):
        if not 0 < density <= 1:
            raise ValueError(f"density must be in (0, 1], got {density}")
        count = max(1, round(density * inputs * outputs))
        places = jax.random.permutation(rngs.params(), inputs * outputs)[:count]
        bound = inputs**-0.5
        self.a = nnx.Param(kaiming(rngs.params(), inputs, rank, dtype))
        self.b = nnx.Param(jnp.zeros((rank, outputs), dtype))
        self.values = nnx.Param(jax.random.uniform(rngs.params(), (count,), dtype, -bound, bound))
        self.places = Frozen(jnp.sort(places).astype(jnp.int32))
        self.scaling = alpha / rank

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., in] to [..., out]."""
        places = self.places[...]

        def product(x: jax.Array, a: jax.Array, b: jax.Array, values: jax.Array) -> jax.Array:
            return x @ self._dense(a, b, values, places)

        return jax.checkpoint(product)(x, self.a[...], self.b[...], self.values[...])

    def merged(self) -> jax.Array:
        """The one kernel that does the same."""
        return self._dense(self.a[...], self.b[...], self.values[...], self.places[...])

    def _dense(self, a: jax.Array, b: jax.Array, values: jax.Array, places: jax.Array) -> jax.Array:
        low_rank = self.scaling * (a @ b)
        entries = low_rank.ravel().at[places]
        dense = entries.add(values, unique_indices=True, indices_are_sorted=True)
        return dense.reshape(low_rank.shape)


class LOST(nnx.Module):
    """``y = g silu(x A) B + (1 - g) x_I C``: factors, and the input channels they describe worst.

    Factors start as the leading part of a dense initial weight, ``A B`` its best approximation; I
    are the channels where the rest is largest, ``C`` the dense weight's rows there. r (in + out) +
    |I| out parameters.

    Args:
        kernel: The dense initial weight, [in, out].
        rank: ``r``.
        channels: ``|I|``.
        gamma: ``g``.

    References:
        Li et al., LOST, https://arxiv.org/abs/2508.02668. Unverified, since the paper's text was
        not at hand: how singular values are shared by the factors (here evenly), where the
        nonlinearity stands, and the choice of ``gamma`` and ``channels``.
    """

    def __init__(self, kernel: jax.Array, rank: int, channels: int, *, gamma: float = 0.7):
        a, b = balanced_factors(kernel, rank)
        _, chosen = jax.lax.top_k(jnp.linalg.norm(kernel - a @ b, axis=1), channels)
        chosen = jnp.sort(chosen)
        self.a, self.b = nnx.Param(a), nnx.Param(b)
        self.rows = nnx.Param(kernel[chosen])
        self.channels = Frozen(chosen.astype(jnp.int32))
        self.gamma = gamma

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., in] to [..., out]."""
        low_rank = jax.nn.silu(x @ self.a[...]) @ self.b[...]
        sparse = x[..., self.channels[...]] @ self.rows[...]
        return self.gamma * low_rank + (1 - self.gamma) * sparse

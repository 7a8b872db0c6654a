"""Adapters: a frozen weight with a small trained part beside it, and how that part may start.

Kernels are laid out (in, out). What is trained is an ``nnx.Param``; what is not is ``Frozen``, so
``nnx.grad`` and ``nnx.Optimizer(..., wrt=nnx.Param)`` leave it alone.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from fira_jax.checks import require_choice


class Frozen(nnx.Variable):
    """An array that belongs to the model and is not trained."""


class LoRA(nnx.Module):
    """``y = x (W + s A B)`` with trained ``A [in, r]``, ``B [r, out]``; starts as ``x W``.

    Args:
        kernel: The frozen weight, [in, out].
        rank: ``r``.
        alpha: ``s`` is ``alpha / rank``; by default 1.
        rank_stabilised: Whether ``s`` is ``alpha / sqrt(rank)`` instead (rsLoRA).
        rngs: Draws ``A``.

    References:
        Hu et al., LoRA, https://arxiv.org/abs/2106.09685.
    """

    def __init__(
        self,
        kernel: jax.Array,
        rank: int,
        *,
        alpha: float | None = None,
        rank_stabilised: bool = False,
        rngs: nnx.Rngs,
    ):
        self.kernel = Frozen(kernel)
        self.lora_a = nnx.Param(kaiming(rngs.params(), kernel.shape[0], rank, kernel.dtype))
        self.lora_b = nnx.Param(jnp.zeros((rank, kernel.shape[1]), kernel.dtype))
        alpha = rank if alpha is None else alpha
        self.scaling = alpha / (math.sqrt(rank) if rank_stabilised else rank)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., in] to [..., out]."""
        inside = (x @ self.lora_a[...]) @ self.lora_b[...]
        return x @ self.kernel[...] + self.scaling * inside

    def merged(self) -> jax.Array:
        """The one kernel that does the same."""
        return self.kernel[...] + self.scaling * (self.lora_a[...] @ self.lora_b[...])


class DoRA(LoRA):
    """LoRA for a weight's directions, and a trained length for each output unit.

    Args:
        kernel: As for :class:`LoRA`, like all others.
        rank: ``r``.
        norm_gradient: Whether gradients flow through the norm too. Taken as constant, which saves
            memory, by default; which of the two the paper's figures were made with is unverified.
        **further: ``alpha``, ``rank_stabilised``, ``rngs``.

    References:
        Liu et al., DoRA, https://arxiv.org/abs/2402.09353.
    """

    def __init__(self, kernel: jax.Array, rank: int, *, norm_gradient: bool = False, **further):
        super().__init__(kernel, rank, **further)
        self.magnitude = nnx.Param(jnp.linalg.norm(kernel, axis=0))
        self.norm_gradient = norm_gradient

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., in] to [..., out]."""
        return super().__call__(x) * self._lengths()

    def merged(self) -> jax.Array:
        """The one kernel that does the same."""
        return super().merged() * self._lengths()

    def _lengths(self) -> jax.Array:
        norm = jnp.linalg.norm(super().merged(), axis=0)
        return self.magnitude[...] / (norm if self.norm_gradient else jax.lax.stop_gradient(norm))


class LoRAXS(nnx.Module):
    """``y = x (W + s A R B)`` of which only ``R [r, r]`` is trained.

    Args:
        kernel: The frozen weight, [in, out].
        a: [in, r].
        core: What ``R`` starts as.
        b: [r, out].
        scaling: ``s``.

    References:
        Bałazy et al., LoRA-XS, https://arxiv.org/abs/2405.17604.
    """

    def __init__(
        self,
        kernel: jax.Array,
        a: jax.Array,
        core: jax.Array,
        b: jax.Array,
        *,
        scaling: float = 1.0,
    ):
        self.kernel, self.a, self.b = Frozen(kernel), Frozen(a), Frozen(b)
        self.core = nnx.Param(core)
        self.scaling = scaling

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., in] to [..., out]."""
        inside = ((x @ self.a[...]) @ self.core[...]) @ self.b[...]
        return x @ self.kernel[...] + self.scaling * inside

    def merged(self) -> jax.Array:
        """The one kernel that does the same."""
        inside = self.a[...] @ self.core[...] @ self.b[...]
        return self.kernel[...] + self.scaling * inside


def start_lora_ga(
    lora: LoRA,
    gradient: jax.Array,
    *,
    gamma: float = 16.0,
    direction: Literal["ArB2r", "A2rBr", "ArBr"] = "ArB2r",
) -> None:
    """Points a LoRA along the gradient of its weight (LoRA-GA); what it computes stays the same.

    Args:
        lora: Changed in place.
        gradient: Of the loss by the full weight, [in, out], averaged over a small sample.
        gamma: Both factors are multiplied by ``out ** 0.25 / sqrt(gamma)`` ("stable").
        direction: Which of the first 2r singular directions go to A and to B: the first and the
            second half, the other way round, or the odd and the even ones.

    Raises:
        ValueError: Unknown direction, or fewer than 2r directions.

    References:
        Wang et al., LoRA-GA, https://arxiv.org/abs/2407.05000. The released code takes a randomized
        SVD; this one is exact.
    """
    require_choice("direction", direction, ("ArB2r", "A2rBr", "ArBr"))
    rank = lora.lora_a.shape[1]
    if 2 * rank > min(gradient.shape):
        raise ValueError(f"rank {rank} needs {2 * rank} directions of a gradient {gradient.shape}")
    left, _, right = jnp.linalg.svd(gradient.astype(jnp.float32), full_matrices=False)
    first, second = slice(0, rank), slice(rank, 2 * rank)
    to_a, to_b = {
        "ArB2r": (first, second),
        "A2rBr": (second, first),
        "ArBr": (slice(1, 2 * rank, 2), slice(0, 2 * rank, 2)),
    }[direction]
    size = gradient.shape[1] ** 0.25 / gamma**0.5
    dtype = lora.kernel.dtype
    lora.lora_a[...] = (size * left[:, to_a]).astype(dtype)
    lora.lora_b[...] = (size * right[to_b]).astype(dtype)
    lora.kernel[...] -= lora.scaling * (lora.lora_a[...] @ lora.lora_b[...])


def start_lora_sb(
    kernel: jax.Array, gradient: jax.Array, rank: int, *, learning_rate: float
) -> LoRAXS:
    """A LoRA-XS that starts where one step of sign descent would have led, cut to rank r (LoRA-SB).

    Args:
        kernel: The weight, [in, out].
        gradient: Of the loss by the weight, summed over a few samples.
        rank: ``r``.
        learning_rate: Length of that step.

    References:
        Ponkshe et al., LoRA-SB, https://arxiv.org/abs/2411.19557.
    """
    step = -learning_rate * jnp.sign(gradient.astype(jnp.float32))
    left, values, right = jnp.linalg.svd(step, full_matrices=False)
    parts = left[:, :rank], jnp.diag(values[:rank]), right[:rank]
    return LoRAXS(kernel, *(x.astype(kernel.dtype) for x in parts))


def merge_and_restart(lora: LoRA, rngs: nnx.Rngs) -> None:
    """ReLoRA's restart: what was learnt goes into the weight, and the factors start anew.

    References:
        Lialin et al., ReLoRA, https://arxiv.org/abs/2307.05695.
    """
    lora.kernel[...] = lora.merged()
    inputs, rank = lora.lora_a.shape
    lora.lora_a[...] = kaiming(rngs.params(), inputs, rank, lora.lora_a.dtype)
    lora.lora_b[...] = jnp.zeros_like(lora.lora_b[...])


def prune_moments(
    opt_state: optax.OptState,
    key: jax.Array,
    *,
    fraction: float = 0.999,
    by: Literal["random", "magnitude"] = "random",
) -> optax.OptState:
    """ReLoRA's partial reset: zeros this fraction of Adam's moments.

    Args:
        opt_state: Any state that contains Adam's ``mu`` and ``nu``.
        key: For the random choice.
        fraction: Share of the entries that become zero.
        by: Which: random ones, or those of smallest magnitude.

    Raises:
        ValueError: Unknown ``by``.
    """
    require_choice("by", by, ("random", "magnitude"))

    def prune(moments: jax.Array, key: jax.Array) -> jax.Array:
        if by == "random":
            keep = jax.random.uniform(key, moments.shape) >= fraction
        else:
            keep = jnp.abs(moments) > jnp.quantile(jnp.abs(moments), fraction)
        return jnp.where(keep, moments, 0)

    for place, name in enumerate(("mu", "nu")):
        leaves, treedef = jax.tree.flatten(optax.tree.get(opt_state, name))
        keys = jax.random.split(jax.random.fold_in(key, place), len(leaves))
        pruned = [prune(x, k) for x, k in zip(leaves, keys, strict=True)]
        opt_state = optax.tree.set(opt_state, **{name: jax.tree.unflatten(treedef, pruned)})
    return opt_state


def with_restarts(schedule: optax.Schedule, every: int, warmup: int) -> optax.Schedule:
    """``schedule``, warmed up again from 0 over ``warmup`` steps after each restart but the first.

    Args:
        schedule: The learning rate without restarts.
        every: Steps between restarts.
        warmup: Steps of linear warmup after each.
    """

    def restarted(count: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
        since = jnp.asarray(count) % every
        share = jnp.where(jnp.asarray(count) < every, 1.0, jnp.minimum(since / warmup, 1.0))
        return schedule(count) * share

    return restarted


def kaiming(key: jax.Array, inputs: int, outputs: int, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Uniform as PyTorch draws linear layers: Kaiming's with a slope of sqrt(5)."""
    bound = inputs**-0.5
    return jax.random.uniform(key, (inputs, outputs), dtype, -bound, bound)

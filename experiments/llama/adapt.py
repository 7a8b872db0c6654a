"""Puts adapters into a trained model, freezes the rest, and takes them out again by merging."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from experiments.llama.adapters import DoRA, Frozen, LoRA, LoRAXS, start_lora_ga, start_lora_sb
from experiments.llama.sora import SoRA

Builder = Callable[..., nnx.Module]
"""``(kernel, rank, alpha, rngs[, gradient]) -> module``; the gradient is that of the kernel."""


def _lora(kernel: jax.Array, rank: int, alpha: float, rngs: nnx.Rngs) -> LoRA:
    return LoRA(kernel, rank, alpha=alpha, rngs=rngs)


def _rslora(kernel: jax.Array, rank: int, alpha: float, rngs: nnx.Rngs) -> LoRA:
    return LoRA(kernel, rank, alpha=alpha, rank_stabilised=True, rngs=rngs)


def _dora(kernel: jax.Array, rank: int, alpha: float, rngs: nnx.Rngs) -> LoRA:
    return DoRA(kernel, rank, alpha=alpha, rngs=rngs)


def _sora(kernel: jax.Array, rank: int, alpha: float, rngs: nnx.Rngs) -> LoRA:
    return SoRA(kernel, rank, alpha=alpha, rngs=rngs)


def _lora_ga(
    kernel: jax.Array, rank: int, alpha: float, rngs: nnx.Rngs, gradient: jax.Array
) -> LoRA:
    lora = LoRA(kernel, rank, alpha=alpha, rank_stabilised=True, rngs=rngs)
    start_lora_ga(lora, gradient)
    return lora


def _lora_sb(
    kernel: jax.Array,
    rank: int,
    alpha: float,  # noqa: ARG001  (its factors are orthonormal: there is nothing to scale)
    rngs: nnx.Rngs,  # noqa: ARG001
    gradient: jax.Array,
) -> LoRAXS:
    return start_lora_sb(kernel, gradient, rank, learning_rate=1e-5)


ADAPTERS: dict[str, Builder] = {
    "lora": _lora,
    "rslora": _rslora,
    "dora": _dora,
    "lora_pro": _lora,
    "lora_ga": _lora_ga,
    "lora_sb": _lora_sb,
    "sora": _sora,
}


def needs_gradient(name: str) -> bool:
    """Whether an adapter starts from the gradient of the weights."""
    return name in ADAPTERS and "gradient" in inspect.signature(ADAPTERS[name]).parameters


def adapt(model: Any, name: str, rank: int, alpha: float, seed: int, gradients: Any = None) -> None:
    """Replaces the kernels of attention and MLP by adapters and freezes everything else.

    Args:
        model: A LLaMA or an encoder, changed in place.
        name: In ``ADAPTERS``.
        rank: Cut to a kernel's smaller side.
        alpha: See the adapters.
        seed: Of what they draw.
        gradients: Where the adapter starts from them: as ``nnx.to_pure_dict`` gives the model's
            parameters.

    Raises:
        ValueError: Unknown name, or gradients missing.
    """
    if name not in ADAPTERS:
        raise ValueError(f"unknown adapter {name!r}; choose from: {', '.join(sorted(ADAPTERS))}")
    if needs_gradient(name) and gradients is None:
        raise ValueError(f"adapter {name} starts from gradients: give them")
    build = ADAPTERS[name]
    rngs = nnx.Rngs(jax.random.fold_in(jax.random.key(seed), 1))

    @nnx.split_rngs(splits=model.config.num_layers)
    @nnx.vmap
    def of_all_layers(rngs: nnx.Rngs, kernel: jax.Array, *gradient: jax.Array) -> nnx.Module:
        return build(kernel, min(rank, *kernel.shape), alpha, rngs, *gradient)

    for part in ("attn", "mlp"):
        block = getattr(model.layers, part)
        for key, value in list(vars(block).items()):
            if isinstance(value, nnx.Param) and not key.endswith("bias"):
                gradient = [gradients["layers"][part][key]] if needs_gradient(name) else []
                setattr(block, key, of_all_layers(rngs, value[...], *gradient))
    freeze_rest(model)


def freeze_rest(model: nnx.Module) -> None:
    """Leaves only matrices of attention and MLP to be trained, and a classifier: it is new."""
    _convert(model, nnx.Param, Frozen)


def merge_adapters(model: Any) -> None:
    """Puts into every adapter's place the one kernel that does the same; all is trained again."""
    merge_layers = nnx.vmap(lambda module: module.merged())
    for block in (model.layers.attn, model.layers.mlp):
        for key, value in list(vars(block).items()):
            if isinstance(value, nnx.Module):
                setattr(block, key, nnx.Param(merge_layers(value)))
    _convert(model, Frozen, nnx.Param)


def _convert(model: nnx.Module, old: type[nnx.Variable], new: type[nnx.Variable]) -> None:
    """Makes variables of another kind of all but the layers' kernels and a classifier."""
    for path, owner in nnx.iter_modules(model):
        new_or_layers = path[:1] == ("classifier",) or path[1:2] in (("attn",), ("mlp",))
        for name, value in list(vars(owner).items()):
            kept = new_or_layers and not name.endswith("bias")
            if type(value) is old and not kept:
                setattr(owner, name, new(value[...]))

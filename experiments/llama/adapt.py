"""Puts adapters into a trained model, freezes the rest, and takes them out again by merging."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.llama.adapters import DoRA, Frozen, LoRA, LoRAXS, start_lora_ga, start_lora_sb
from experiments.llama.ggpo import LoRAGGPO
from experiments.llama.maestro import Maestro
from experiments.llama.pela import PELA
from experiments.llama.prilora import PRILoRA
from experiments.llama.sora import SoRA

Builder = Callable[..., nnx.Module]
"""``(kernel, rank, alpha, rngs, ...) -> module``. It may ask by name for the ``gradient`` of the
kernel, the layer's ``depth`` from 0 to 1, and how much ``noise`` weights get in training."""


def _lora(kernel: jax.Array, rank: int, alpha: float, rngs: nnx.Rngs) -> LoRA:
    return LoRA(kernel, rank, alpha=alpha, rngs=rngs)


def _rslora(kernel: jax.Array, rank: int, alpha: float, rngs: nnx.Rngs) -> LoRA:
    return LoRA(kernel, rank, alpha=alpha, rank_stabilised=True, rngs=rngs)


def _dora(kernel: jax.Array, rank: int, alpha: float, rngs: nnx.Rngs) -> LoRA:
    return DoRA(kernel, rank, alpha=alpha, rngs=rngs)


def _sora(kernel: jax.Array, rank: int, alpha: float, rngs: nnx.Rngs) -> LoRA:
    return SoRA(kernel, rank, alpha=alpha, rngs=rngs)


def _lora_ggpo(
    kernel: jax.Array, rank: int, alpha: float, rngs: nnx.Rngs, noise: float
) -> LoRAGGPO:
    return LoRAGGPO(kernel, rank, alpha=alpha, sigma=noise, rngs=rngs)


def _prilora(
    kernel: jax.Array, rank: int, alpha: float, rngs: nnx.Rngs, depth: jax.Array
) -> PRILoRA:
    # From half the rank to one and a half: as many directions in all as with the same everywhere.
    largest = min(3 * rank // 2, *kernel.shape)
    own = jnp.minimum(jnp.round(rank * (0.5 + depth)), largest)
    return PRILoRA(kernel, largest, alpha=alpha * largest / rank, own_rank=own, rngs=rngs)


def _pela(kernel: jax.Array, rank: int, alpha: float, rngs: nnx.Rngs) -> PELA:  # noqa: ARG001
    return PELA(kernel, rank)


def _maestro(kernel: jax.Array, rank: int, alpha: float, rngs: nnx.Rngs) -> Maestro:  # noqa: ARG001
    inputs, outputs = kernel.shape
    layer = Maestro(inputs, outputs, rank, rngs=rngs, dtype=kernel.dtype)
    layer.start_at(kernel)
    return layer


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
    "lora_ggpo": _lora_ggpo,
    "prilora": _prilora,
    "pela": _pela,
    "maestro": _maestro,
}


def needs_gradient(name: str) -> bool:
    """Whether an adapter starts from the gradient of the weights."""
    return name in ADAPTERS and "gradient" in inspect.signature(ADAPTERS[name]).parameters


def adapt(
    model: Any,
    name: str,
    rank: int,
    alpha: float,
    seed: int,
    gradients: Any = None,
    noise: float = 0.05,
) -> None:
    """Replaces the kernels of attention and MLP by adapters and freezes everything else.

    Args:
        model: A LLaMA or an encoder, changed in place.
        name: In ``ADAPTERS``.
        rank: Cut to a kernel's smaller side.
        alpha: See the adapters.
        seed: Of what they draw.
        gradients: Where the adapter starts from them: as ``nnx.to_pure_dict`` gives the model's
            parameters.
        noise: Of weights in training, where the adapter has any.

    Raises:
        ValueError: Unknown name, or gradients missing.
    """
    if name not in ADAPTERS:
        raise ValueError(f"unknown adapter {name!r}; choose from: {', '.join(sorted(ADAPTERS))}")
    if needs_gradient(name) and gradients is None:
        raise ValueError(f"adapter {name} starts from gradients: give them")
    build = ADAPTERS[name]
    asked = inspect.signature(build).parameters
    depths = jnp.linspace(0, 1, model.config.num_layers)
    rngs = nnx.Rngs(jax.random.fold_in(jax.random.key(seed), 1))

    @nnx.split_rngs(splits=model.config.num_layers)
    @nnx.vmap
    def of_all_layers(rngs: nnx.Rngs, kernel: jax.Array, depth: jax.Array, *of: jax.Array) -> Any:
        known = {"gradient": of[0] if of else None, "depth": depth, "noise": noise}
        extra = {key: value for key, value in known.items() if key in asked}
        return build(kernel, min(rank, *kernel.shape), alpha, rngs, **extra)

    for part in ("attn", "mlp"):
        block = getattr(model.layers, part)
        for key, value in list(vars(block).items()):
            if isinstance(value, nnx.Param) and not key.endswith("bias"):
                gradient = [gradients["layers"][part][key]] if needs_gradient(name) else []
                setattr(block, key, of_all_layers(rngs, value[...], depths, *gradient))
    freeze_rest(model)


def freeze_rest(model: nnx.Module) -> None:
    """Leaves only matrices of attention and MLP to be trained, and a classifier: it is new."""
    _convert(model, nnx.Param, Frozen)


def adapters_of(model: Any) -> Iterator[tuple[str, str, Any]]:
    """The stacked adapters of a model: block, name and module."""
    for part in ("attn", "mlp"):
        for name, module in list(vars(getattr(model.layers, part)).items()):
            if isinstance(module, nnx.Module):
                yield part, name, module


def merge_adapters(model: Any) -> None:
    """Puts into every adapter's place the one kernel that does the same; all is trained again."""
    merge_layers = nnx.vmap(lambda module: module.merged())
    for part, name, module in adapters_of(model):
        setattr(getattr(model.layers, part), name, nnx.Param(merge_layers(module)))
    _convert(model, Frozen, nnx.Param)


def _convert(model: nnx.Module, old: type[nnx.Variable], new: type[nnx.Variable]) -> None:
    """Makes variables of another kind of all but the layers' kernels and a classifier."""
    for path, owner in nnx.iter_modules(model):
        new_or_layers = path[:1] == ("classifier",) or path[1:2] in (("attn",), ("mlp",))
        for name, value in list(vars(owner).items()):
            kept = new_or_layers and not name.endswith("bias")
            if type(value) is old and not kept:
                setattr(owner, name, new(value[...]))

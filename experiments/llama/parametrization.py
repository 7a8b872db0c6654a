"""Models whose layers' kernels are something smaller than matrices: ``--parametrization NAME``.

The baselines that low-rank optimizers are compared with. Every kernel of attention and MLP becomes
one of the modules of ``adapters.py`` or ``factorized.py`` beside this file; embedding, norms and
head stay as they are and are trained.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import nnx

from experiments.llama.adapters import DoRA, LoRA, merge_and_restart, prune_moments, with_restarts
from experiments.llama.factorized import LOST, CoLA, Factorized, SLTrain
from experiments.llama.model import Llama
from experiments.training.config import PretrainConfig
from experiments.training.step import TrainState, merge, split

Builder = Callable[[jax.Array, int, nnx.Rngs], nnx.Module]
"""Makes a module of a kernel [in, out] as it is drawn, a rank and what it may draw from."""


def _of_its_size(module: Callable[..., nnx.Module]) -> Builder:
    """Builds a module that needs only the sizes of the kernel, not what was drawn."""

    def build(kernel: jax.Array, rank: int, rngs: nnx.Rngs) -> nnx.Module:
        inputs, outputs = kernel.shape
        return module(inputs, outputs, rank, rngs=rngs, dtype=kernel.dtype)

    return build


PARAMETRIZATIONS: dict[str, Builder] = {
    "lora": lambda kernel, rank, rngs: LoRA(kernel, rank, rngs=rngs),
    "relora": lambda kernel, rank, rngs: LoRA(kernel, rank, rngs=rngs),
    "dora": lambda kernel, rank, rngs: DoRA(kernel, rank, rngs=rngs),
    "factorized": _of_its_size(Factorized),
    "cola": _of_its_size(CoLA),
    "sltrain": _of_its_size(SLTrain),
    # How many channels the paper keeps is unverified.
    "lost": lambda kernel, rank, _: LOST(kernel, rank, channels=-(-rank // 4)),
}
LONGEST_WARMUP = 50  # steps after a restart of ReLoRA, as published


def parametrize(model: Llama, config: PretrainConfig) -> None:
    """Replaces the kernels of all layers, in place; nothing without ``--parametrization``.

    Raises:
        ValueError: Unknown name.
    """
    name = config.parametrization
    if name is None:
        return
    if name not in PARAMETRIZATIONS:
        names = ", ".join(sorted(PARAMETRIZATIONS))
        raise ValueError(f"unknown parametrization {name!r}; choose from: {names}")
    rngs = nnx.Rngs(jax.random.fold_in(jax.random.key(config.seed), 1))

    @nnx.split_rngs(splits=model.config.num_layers)
    @nnx.vmap
    def build(rngs: nnx.Rngs, kernel: jax.Array) -> nnx.Module:
        return PARAMETRIZATIONS[name](kernel, min(config.rank, *kernel.shape), rngs)

    for block in (model.layers.attn, model.layers.mlp):
        for key, value in list(vars(block).items()):
            if isinstance(value, nnx.Param):
                setattr(block, key, build(rngs, value[...]))


def restarting(config: PretrainConfig, schedule: optax.Schedule) -> optax.Schedule:
    """The schedule, warmed up again after each restart if there are restarts."""
    every = config.update_proj_gap
    if config.parametrization != "relora":
        return schedule
    return with_restarts(schedule, every, min(LONGEST_WARMUP, -(-every // 4)))


def make_restart(
    config: PretrainConfig, graphdef: nnx.GraphDef, state_shardings: Any = None
) -> Any:
    """ReLoRA's restart of a whole state, jitted; what the model computes stays the same.

    What was learnt goes into the weights, the factors start anew, and most of their moments become
    zero. The published runs begin with some steps at full rank; these do not.
    """

    def restart(state: TrainState) -> TrainState:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        model = merge(graphdef, state.params, state.frozen)

        @nnx.split_rngs(splits=model.config.num_layers)
        @nnx.vmap
        def restart_all(rngs: nnx.Rngs, lora: LoRA) -> None:
            merge_and_restart(lora, rngs)

        rngs = nnx.Rngs(key)
        for block in (model.layers.attn, model.layers.mlp):
            for value in vars(block).values():
                if isinstance(value, LoRA):
                    restart_all(rngs, value)

        def of_factors(path: Any, pruned: jax.Array, before: jax.Array) -> jax.Array:
            return pruned if getattr(path[-1], "key", "") in ("lora_a", "lora_b") else before

        pruned = prune_moments(state.opt_state, jax.random.fold_in(key, 1))
        opt_state = jax.tree_util.tree_map_with_path(of_factors, pruned, state.opt_state)
        params, frozen = split(model)
        return TrainState(state.step, params, opt_state, frozen)

    return jax.jit(restart, donate_argnums=0, out_shardings=state_shardings)

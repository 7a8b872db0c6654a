"""What adapters ask of training: an optimizer, a loss, and what happens between two updates."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import fira_jax
from experiments.llama.adapt import adapters_of
from experiments.llama.ggpo import LoRAGGPO
from experiments.llama.pela import distillation_loss
from experiments.llama.prilora import InputEnergy
from experiments.training.finetune_config import FinetuneConfig
from experiments.training.loop import Between
from experiments.training.optimizers import build_optimizer
from experiments.training.step import Loss, TrainState, merge, split
from experiments.training.subjects import Subject


def make_optimizer(config: FinetuneConfig, settings: Any, schedule: Any) -> Any:
    """The named optimizer, or the adapter's own."""
    if config.adapter == "lora_pro":
        scaling = config.alpha / config.rank
        return fira_jax.lora_pro(schedule, scaling, config.weight_decay, moments="factors")
    optimizer = build_optimizer(settings, schedule)
    if config.adapter == "sora":
        shrink = fira_jax.transforms.proximal_l1(schedule, config.gate_penalty)
        return optax.chain(optimizer, shrink)
    return optimizer


def plain_loss(subject: Subject) -> Loss:
    """The task's loss of a model as it is."""
    return lambda model, batch: subject.loss_of(model, subject.features(model, batch), batch)


def training_loss(config: FinetuneConfig, subject: Subject) -> Loss:
    """The loss that is trained; what it changes in the model it is given stays there."""
    loss = plain_loss(subject)

    def ggpo(model: Any, batch: Any) -> jax.Array:
        model.set_attributes(training=True)
        return loss(model, batch)

    def maestro(model: Any, batch: Any) -> jax.Array:
        model.set_attributes(training=True)
        penalties = nnx.vmap(lambda layer: layer.penalty())
        total = sum(jnp.sum(penalties(layer)) for _, _, layer in adapters_of(model))
        return loss(model, batch) + config.rank_penalty * total

    def pela(model: Any, batch: Any) -> jax.Array:
        model.set_attributes(teaching=True)
        wanted = subject.features(model, batch)
        model.set_attributes(teaching=False)
        found = subject.features(model, batch)
        distances = nnx.vmap(lambda layer: layer.perturbation())
        far = [jnp.mean(distances(layer)) for _, _, layer in adapters_of(model)]
        taught = distillation_loss(found, wanted) + jnp.mean(jnp.stack(far))
        return subject.loss_of(model, found, batch) + config.distillation * taught

    return {"lora_ggpo": ggpo, "maestro": maestro, "pela": pela}.get(config.adapter, loss)


def between_updates(
    config: FinetuneConfig, subject: Subject, graphdef: nnx.GraphDef, steps: int, formats: Any
) -> Between:
    """What makes the state behind a step ready for the next update.

    LoRA-GGPO and Maestro go on to their next random numbers, the former with Adam's average of the
    factors' gradients; PRILoRA is pruned every so often, by the inputs of another batch.
    """

    def in_model(change: Callable[..., None]) -> Any:
        """A jitted function of the state that changes the model in it."""

        def changed(state: TrainState, *more: Any) -> TrainState:
            model = merge(graphdef, state.params, state.frozen)
            change(model, state, *more)
            params, frozen = split(model)
            return TrainState(state.step, params, state.opt_state, frozen)

        return jax.jit(changed, donate_argnums=0, out_shardings=formats)

    @in_model
    def redraw(model: Any, state: TrainState) -> None:
        for part, name, stack in adapters_of(model):
            nnx.vmap(lambda layer: layer.redraw())(stack)
            if isinstance(stack, LoRAGGPO):
                squares = optax.tree.get(state.opt_state, "nu")["layers"][part][name]["lora_b"]
                nnx.vmap(lambda layer, squares: layer.observe(squares))(stack, squares)

    @in_model
    def prune(model: Any, state: TrainState, batch: Any) -> None:  # noqa: ARG001
        graph, *states = nnx.split(model, InputEnergy, nnx.Not(InputEnergy))
        energies, rest = states
        loss = plain_loss(subject)
        found = jax.grad(lambda e: loss(nnx.merge(graph, e, rest), batch))(energies)
        for part, name, stack in adapters_of(model):

            def measure_and_prune(layer: Any, energy: jax.Array) -> None:
                layer.observe(energy)
                layer.prune(config.pruned)

            nnx.vmap(measure_and_prune)(stack, found["layers"][part][name]["input_energy"][...])

    def between(step: int, state: TrainState) -> TrainState:
        if config.adapter in ("lora_ggpo", "maestro"):
            return redraw(state)
        if config.adapter == "prilora" and step % config.prune_every == 0 and step < steps:
            chosen = np.random.default_rng((config.seed, step)).choice(
                len(subject.rows), config.batch_size, replace=False
            )
            return prune(state, on_device(subject.rows.take(chosen)))
        return state

    return between


def on_device(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """A batch as JAX's arrays."""
    return {name: jnp.asarray(x) for name, x in batch.items()}

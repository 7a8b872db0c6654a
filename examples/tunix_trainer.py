"""Tunix: its `PeftTrainer` takes the optimizer as it is, for all weights and for LoRA."""

import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from orbax import checkpoint as ocp
from tunix.sft.hooks import TrainingHooks
from tunix.sft.peft_trainer import PeftTrainer, TrainingConfig

import fira_jax
from examples import shared
from examples.flax_nnx import Model


class Losses(TrainingHooks):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        """Begins with none."""
        self.all: list[float] = []

    def on_train_step_end(self, *told: Any) -> None:
        """Is told of the trainer, the step and its loss."""
        self.all.append(float(told[-1]))

    def on_train_start(self, *_: object) -> None:
        """Nothing."""

    on_train_end = on_train_step_start = on_eval_step_start = on_eval_step_end = on_train_start


class Adapted(nnx.Module):
    """The model of ``flax_nnx.py`` with LoRA at its head: the adapter alone is trained."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Makes frozen weights and an adapter."""
        self.base = Model(64, rngs)
        old = self.base.head
        self.base.head = nnx.LoRA(64, 4, shared.VOCABULARY, base_module=old, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits of the next tokens."""
        return self.base(tokens)


def loss(model: nnx.Module, batch: jax.Array) -> jax.Array:
    """Of the next tokens."""
    return shared.next_token_loss(model(batch[:, :-1]), batch)


def train(
    model: nnx.Module, tx: optax.GradientTransformation, folder: Path, steps: int
) -> list[float]:
    """Trains up to ``steps``; what an earlier trainer saved in the folder is gone on from."""
    config = TrainingConfig(
        eval_every_n_steps=1000,
        max_steps=steps,
        checkpoint_root_directory=str(folder),
        checkpointing_options=ocp.CheckpointManagerOptions(save_interval_steps=1000),
    )
    trainer = PeftTrainer(model, tx, config).with_loss_fn(loss)
    hooks = Losses()
    trainer.with_training_hooks(hooks)
    trainer.train([{"batch": shared.tokens(step).astype(np.int32)} for step in range(steps)])
    return hooks.all


def in_two_parts(make: type, tx: optax.GradientTransformation) -> list[float]:
    """Trains once as a whole and once in two parts: exactly the same weights."""
    with tempfile.TemporaryDirectory() as folder:
        whole, first, second = (make(nnx.Rngs(0)) for _ in range(3))
        losses = train(whole, tx, Path(folder, "whole"), shared.STEPS)
        train(first, tx, Path(folder, "parts"), shared.STEPS - 3)
        train(second, tx, Path(folder, "parts"), shared.STEPS)  # Tunix skips what was trained on
    shared.show_curve(losses)
    shared.require_same(*(nnx.to_pure_dict(nnx.state(m)) for m in (second, whole)))
    return losses


class Small(Model):
    """The model of ``flax_nnx.py``."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Makes the weights."""
        super().__init__(64, rngs)


def main() -> tuple[list[float], fira_jax.Description]:
    """Trains all weights with Fira, then an adapter with LoRA-Pro."""
    # tx = optax.adamw(3e-3)
    tx = fira_jax.fira(3e-3, rank=8, scale=1.0, weight_dimension_numbers=fira_jax.match_modules())
    table = shared.show_memory(tx, nnx.state(Small(nnx.Rngs(0)), nnx.Param))
    losses = in_two_parts(Small, tx)

    # tx = optax.adamw(3e-3)
    tx = fira_jax.lora_pro(3e-3, scaling=1.0, moments="factors")
    shared.show_memory(tx, nnx.state(Adapted(nnx.Rngs(0)), nnx.LoRAParam))
    adapted = in_two_parts(Adapted, tx)
    assert adapted[-1] < adapted[0]
    return losses, table


if __name__ == "__main__":
    main()

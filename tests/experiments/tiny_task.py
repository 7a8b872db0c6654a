"""The training loop's smallest task: a linear model that compiles at once, deterministic data."""

import functools
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.training.checkpoint import Checkpoints
from experiments.training.folder import RunFolder
from experiments.training.lock import held
from experiments.training.loop import Plan, Progress, Task, train
from experiments.training.metrics import read_metrics
from experiments.training.step import TrainState

ROWS, WIDTH = 4, 512
OPTIMIZER = optax.adam(0.01)
SETTINGS = {"run": {"lr": 0.05}}


def init_state() -> TrainState:
    params = {"w": 0.1 * jax.random.normal(jax.random.key(0), (WIDTH, 2)), "b": jnp.zeros(2)}
    return TrainState(jnp.int32(0), params, OPTIMIZER.init(params))


def loss(params: Any, x: jax.Array) -> jax.Array:
    return jnp.mean((x @ params["w"] + params["b"] - jnp.sin(x[:, :2])) ** 2)


@functools.partial(jax.jit, donate_argnums=0)
def train_step(state: TrainState, x: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
    value, grads = jax.value_and_grad(loss)(state.params, x)
    updates, opt_state = OPTIMIZER.update(grads, state.opt_state)
    params = optax.apply_updates(state.params, updates)
    values = {"train_loss": value, "grad_norm": optax.global_norm(grads)}
    return TrainState(state.step + 1, params, opt_state), values


def rows(i: int) -> np.ndarray:
    return np.random.default_rng(i).standard_normal((ROWS, WIDTH)).astype(np.float32)


def make_task(**changes: Any) -> Task:
    data = iter(grain.MapDataset.range(50).shuffle(seed=1).repeat().map(rows).to_iter_dataset())
    held_out = jnp.asarray(rows(1000))
    parts = {
        "init_state": init_state,
        "abstract_state": jax.eval_shape(init_state),
        "train_step": train_step,
        "next_batch": lambda state: (jnp.asarray(next(data)), ROWS),
        "data": data,
        "evaluate": lambda state: {"eval_loss": loss(state.params, held_out)},
        "example": jnp.zeros((ROWS, WIDTH)),
    }
    return Task(**parts | changes)


def run(
    directory: Path,
    steps: int = 20,
    stop: int | None = None,
    every: int = 4,
    eval_every: int = 4,
    **changes: Any,
) -> Progress:
    """A run as an entry point makes it."""
    folder = RunFolder(directory)
    folder.create()
    task = make_task(**changes)
    with held(folder.path) as still_ours:
        checkpoints = Checkpoints(folder.path / "checkpoints")
        try:
            folder.claim(SETTINGS, {}, lambda: (checkpoints.note() or {}).get("settings"))
            plan = Plan(steps, stop or steps, eval_every, every)
            return train(task, plan, folder.path, checkpoints, still_ours, SETTINGS)
        finally:
            checkpoints.close()
            task.data.close()


def log_of(directory: Path) -> list[dict[str, Any]]:
    return read_metrics(directory / "metrics.jsonl")

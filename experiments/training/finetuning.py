"""A fine-tuning run: a trained model, a task and a method, handed to the training loop."""

import contextlib
import dataclasses
import math
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import fira_jax
from experiments.llama.adapt import adapt, freeze_rest, merge_adapters, needs_gradient
from experiments.memory import GIB, Prediction
from experiments.training.adapter_training import (
    between_updates,
    make_optimizer,
    on_device,
    plain_loss,
    training_loss,
)
from experiments.training.answering import Answering
from experiments.training.checkpoint import Checkpoints
from experiments.training.finetune_config import FinetuneConfig, defaults, resolved
from experiments.training.folder import RunFolder
from experiments.training.layerwise_step import answer_parts, make_layerwise_update
from experiments.training.lock import held
from experiments.training.loop import Plan, Progress, Task, train
from experiments.training.optimizers import learning_rate_schedule
from experiments.training.report import DivergedError
from experiments.training.scoring import spread
from experiments.training.step import TrainState, make_train_step, merge, split
from experiments.training.subjects import Subject, subject_of
from fira_jax.cost.liveness import peak
from fira_jax.cost.memory import device_bytes

_GRADIENT_BATCHES = 4  # from which an adapter's start is taken


def run(config: FinetuneConfig) -> dict[str, Any]:
    """Fine-tunes as ``config`` says, continuing whatever its folder holds.

    Returns:
        The contents of ``summary.json``, or ``{}`` if ``stop_after`` or ``memory`` came first.

    Raises:
        ValueError: If the folder holds a different run, or a setting or an example is impossible.
        InUseError: If another process works there.
    """
    subject = subject_of(config)
    steps = updates(config, subject)
    if config.memory:
        print(predict(make_task(config, subject, steps)[1]))
        return {}
    folder = RunFolder(config.directory)
    folder.create()
    with contextlib.ExitStack() as stack:
        still_ours = stack.enter_context(held(folder.path))
        checkpoints = stack.enter_context(closing(Checkpoints(folder.path / "checkpoints")))
        settings = resolved(config, subject.architecture, subject.fingerprints)
        folder.claim(settings, defaults(), lambda: (checkpoints.note() or {}).get("settings"))
        if (summary := folder.summary) is not None:
            print(f"{folder}: already finished, nothing to do")
            return summary
        graphdef, task = make_task(config, subject, steps)
        stack.enter_context(closing(task.data))
        needed = predict(task)
        print(
            f"an update takes about {needed.peak_bytes / GIB:.2f} GiB, of it weights "
            f"{needed.weight_bytes / GIB:.2f} and optimizer state {needed.state_bytes / GIB:.3f} "
            "(--memory shows the rest)"
        )
        stop = min(steps, config.stop_after or steps)
        plan = Plan(steps, stop, config.eval_every, config.checkpoint_every)
        task, last = _remembering_state(task)
        progress = train(task, plan, folder.path, checkpoints, still_ours, settings)
        if stop < steps:
            print(f"stopped after step {stop} of {steps}; without --stop-after it goes on")
            return {}
        state = last() or checkpoints.restore(task.abstract_state)[1]  # type: ignore[index]
        model = merge(graphdef, state.params, state.frozen)
        summary = summarize(config, subject, progress, state, graphdef)
        merge_adapters(model)
        export = Path(folder.path) / "model"
        subject.export(model, export)
        folder.finish(summary)
    if summary["accuracy"] is not None:
        low, high = summary["accuracy_interval"]
        print(f"accuracy {summary['accuracy']:.1%}, 95 % interval {low:.1%} to {high:.1%}")
    print(f"finished: held-out loss {summary['eval_loss']:.4f}; the model is in {export}")
    return summary


def updates(config: FinetuneConfig, subject: Subject) -> int:
    """How many updates a run makes.

    Raises:
        ValueError: If there are not enough examples for one.
    """
    task, rows = subject.task, len(subject.rows)
    if rows < config.batch_size:
        raise ValueError(f"--batch-size {config.batch_size} is more than the {rows} rows there are")
    steps = config.steps or max(1, math.ceil(config.epochs * rows / config.batch_size))
    print(
        f"{task.name}: {len(task.train)} examples to learn from in {rows} rows of "
        f"{subject.seq_len} tokens, {len(task.test)} held out; {steps} updates"
    )
    return steps


def make_task(config: FinetuneConfig, subject: Subject, steps: int) -> tuple[nnx.GraphDef, Task]:
    """The model's structure while it is trained, and what the loop needs."""
    settings = config.as_pretraining(steps)
    schedule = learning_rate_schedule(settings)
    optimizer = make_optimizer(config, settings, schedule)
    batches = iter(subject.rows.batches(config.batch_size, config.seed))
    example = on_device(subject.rows.take(np.arange(config.batch_size)))

    def prepare(model: nnx.Module, gradients: Any) -> None:
        if config.adapter != "none":
            how = (config.adapter, config.rank, config.alpha, config.seed, gradients, config.noise)
            adapt(model, *how)
        elif config.train == "matrices":
            freeze_rest(model)

    def drawn() -> nnx.Module:
        model = subject.drawn()
        prepare(model, nnx.to_pure_dict(nnx.state(model)))  # of the shapes that gradients have
        return model

    abstract = nnx.eval_shape(drawn)
    graphdef = nnx.graphdef(abstract)
    if config.layerwise:
        init, train_step = make_layerwise_update(
            answer_parts(subject.architecture), optimizer, schedule, config.seed,
            config.accumulate, config.grad_clip,
        )  # fmt: skip
    else:
        init = optimizer.init
        train_step = make_train_step(
            graphdef, optimizer, schedule, config.accumulate, loss=training_loss(config, subject)
        )

    def state_of(params: Any, frozen: Any) -> TrainState:
        return TrainState(jnp.int32(0), params, init(params), frozen)

    def begin(formats: Any) -> TrainState:
        model = subject.read(config.seed)
        gradients = _gradients(model, subject, config) if needs_gradient(config.adapter) else None
        prepare(model, gradients)
        state = jax.jit(state_of, donate_argnums=(0, 1))(*split(model))
        return state if formats is None else jax.device_put(state, formats, donate=True)

    abstract_state = jax.eval_shape(state_of, *split(abstract))
    print(fira_jax.describe(optimizer, abstract_state.params))
    held_out = spread(subject.task.test, config.eval_examples)
    scorer = subject.scorer(graphdef, held_out, config.batch_size // config.accumulate)

    def next_batch(state: TrainState) -> tuple[Any, int]:  # noqa: ARG001
        return on_device(next(batches)), config.batch_size * subject.seq_len

    def evaluate(state: TrainState) -> dict[str, Any]:
        return scorer(state.params, state.frozen).as_values()

    return graphdef, Task(
        init_state=lambda: state_of(*split(drawn())),
        abstract_state=abstract_state,
        train_step=train_step,
        next_batch=next_batch,
        data=batches,
        evaluate=evaluate,
        example=example,
        begin=begin,
        make_between=lambda formats: between_updates(config, subject, graphdef, steps, formats),
    )


def predict(task: Task) -> Prediction:
    """What an update takes, weights and optimizer state exactly, the rest by tracing it."""
    state = task.abstract_state
    needed = peak(jax.make_jaxpr(task.train_step)(state, task.example))
    return Prediction(
        weight_bytes=device_bytes(state.params) + device_bytes(state.frozen),
        state_bytes=device_bytes(state.opt_state),
        gathered_bytes=0,
        working_bytes=needed.size,
        arrays=needed.arrays,
        gradient_bytes=device_bytes(state.params),
    )


def summarize(
    config: FinetuneConfig,
    subject: Subject,
    progress: Progress,
    state: TrainState,
    graphdef: nnx.GraphDef,
) -> dict[str, Any]:
    """What a finished run says of itself, tested on the held-out examples.

    Raises:
        DivergedError: If it ended with a loss that is NaN or infinite.
    """
    test = spread(subject.task.test, config.test_examples)
    rows = config.batch_size // config.accumulate
    score = subject.scorer(graphdef, test, rows)(state.params, state.frozen)
    if not math.isfinite(score.loss):
        raise DivergedError("the run ended with a held-out loss that is NaN or infinite")
    summary: dict[str, Any] = {"steps": progress.step, "eval_loss": score.loss}
    for name, found in (("accuracy", score.accuracy), ("accuracy_by_length", score.by_length)):
        summary[name] = found.value if found else None
        summary[f"{name}_interval"] = found.interval if found else None
    if config.generate and isinstance(subject, Answering):
        found = subject.generated(merge(graphdef, state.params, state.frozen), test, rows)
        summary["accuracy_generated"], summary["accuracy_generated_interval"] = (
            found.value,
            found.interval,
        )
    if config.adapter == "sora":
        named = jax.tree.leaves_with_path(state.params)
        gates = np.concatenate([np.ravel(x) for path, x in named if path[-1].key == "gate"])
        summary["open_gates"] = float(np.mean(gates != 0))
    return summary | {
        "test_examples": len(test),
        "seconds": progress.seconds,
        "tokens_per_second": progress.tokens / max(progress.seconds, 1e-9),
        "trained_parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "optimizer_state_bytes": device_bytes(state.opt_state),
    }


def _gradients(model: nnx.Module, subject: Subject, config: FinetuneConfig) -> Any:
    """Mean gradient of the weights over the first batches of another order."""
    graphdef, params = nnx.split(model, nnx.Param)[0], nnx.to_pure_dict(nnx.state(model))

    loss = plain_loss(subject)
    of_batch = jax.jit(jax.grad(lambda p, batch: loss(nnx.merge(graphdef, p), batch)))
    batches = iter(subject.rows.batches(config.batch_size, config.seed + 1))
    total = of_batch(params, on_device(next(batches)))
    for _ in range(_GRADIENT_BATCHES - 1):
        total = jax.tree.map(jnp.add, total, of_batch(params, on_device(next(batches))))
    return jax.tree.map(lambda x: x / _GRADIENT_BATCHES, total)


def _remembering_state(task: Task) -> tuple[Task, Any]:
    """The task, and a function for the state that its last update made."""
    kept: list[TrainState] = []

    def evaluate(state: TrainState) -> dict[str, Any]:
        kept[:] = [state]
        return task.evaluate(state)

    return dataclasses.replace(task, evaluate=evaluate), lambda: kept[0] if kept else None

"""A pretraining run: its model, optimizer and text, handed to the training loop."""

import contextlib
import dataclasses
import functools
import json
import math
from contextlib import closing
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

import fira_jax
from experiments.llama.configs import load_model_config
from experiments.llama.model import LlamaConfig
from experiments.llama.parametrization import make_restart, parametrize, restarting
from experiments.mesh import first_process_first, is_first_process, local_rows, make_mesh, put_batch
from experiments.text import batches as data
from experiments.training.adaptive_batch import batches_per_update, next_rows
from experiments.training.checkpoint import Checkpoints
from experiments.training.config import FREE_KEYS, PretrainConfig
from experiments.training.folder import RunFolder
from experiments.training.layerwise_step import make_layerwise
from experiments.training.lock import held
from experiments.training.loop import Between, Plan, Progress, Task, train
from experiments.training.optimizers import build_optimizer, learning_rate_schedule
from experiments.training.report import DivergedError, perplexity
from experiments.training.step import (
    TrainState,
    make_evaluate,
    make_init,
    make_state_shardings,
    make_train_step,
)
from experiments.training.watch import watch_table
from fira_jax.cost.memory import device_bytes


def run(config: PretrainConfig) -> dict[str, Any]:
    """Trains as ``config`` says, continuing whatever its folder holds.

    Returns:
        The contents of ``summary.json``, or ``{}`` if ``stop_after`` came first.

    Raises:
        ValueError: If the folder holds a different run, or a setting is impossible.
        InUseError: If another process works there.
        experiments.training.loop: And what ``train`` raises.
    """
    folder = RunFolder(config.directory)
    model_config = resolve_model(config)
    mesh = make_mesh(config.mesh) if config.mesh else None
    with contextlib.ExitStack() as stack:
        with first_process_first():
            still_ours = hold(folder, stack)
            tokens = load_data(config, model_config.vocab_size)
        settings = resolved(config, model_config, tokens.fingerprint)
        stack.enter_context(contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh))
        checkpoints = stack.enter_context(closing(Checkpoints(folder.path / "checkpoints")))
        with first_process_first():
            if is_first_process():
                folder.claim(
                    settings, defaults(), lambda: (checkpoints.note() or {}).get("settings")
                )
        if (summary := folder.summary) is not None:
            print(f"{folder}: already finished, nothing to do")
            return summary
        task = make_task(config, model_config, tokens, mesh)
        stack.enter_context(closing(task.data))
        stop = min(config.steps, config.stop_after or config.steps)
        plan = Plan(config.steps, stop, config.eval_every, config.checkpoint_every)
        progress = train(task, plan, folder.path, checkpoints, still_ours, settings)
        if stop < config.steps:
            print(f"stopped after step {stop} of {config.steps}; without --stop-after it goes on")
            return {}
        if not is_first_process():
            return {}
        summary = summarize(progress, task.abstract_state, tokens.bytes_per_token)
        folder.finish(summary)
    if config.watch:
        Console().print(watch_table(progress.last))
    print(
        f"finished: validation loss {summary['eval_loss']:.4f}, perplexity "
        f"{perplexity(summary['eval_loss']):.2f}; everything is in {folder}"
    )
    return summary


def hold(folder: RunFolder, stack: contextlib.ExitStack) -> Any:
    """Holds the folder until ``stack`` ends, for all processes of one run by the first of them."""
    folder.create()
    return stack.enter_context(held(folder.path)) if is_first_process() else lambda: None


def resolved(
    config: PretrainConfig, model_config: LlamaConfig, fingerprint: str
) -> dict[str, dict[str, Any]]:
    """Everything that two commands which continue one run have in common."""
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in FREE_KEYS}
    parts = {
        "run": settings,
        "model": dataclasses.asdict(model_config),
        "data": {"fingerprint": fingerprint},
    }
    return json.loads(json.dumps(parts, default=str))


def defaults() -> dict[str, dict[str, Any]]:
    """What a key that a run's ``config.json`` does not have stood for."""
    return {
        part: {
            field.name: field.default
            for field in dataclasses.fields(kind)
            if field.default is not dataclasses.MISSING
        }
        for part, kind in (("run", PretrainConfig), ("model", LlamaConfig))
    }


def make_task(
    config: PretrainConfig, model_config: LlamaConfig, tokens: data.TokenData, mesh: Mesh | None
) -> Task:
    """What ``config`` trains, for the loop."""
    schedule = restarting(config, learning_rate_schedule(config))
    optimizer = build_optimizer(config, schedule)
    prepare = functools.partial(parametrize, config=config)
    graphdef, init_state = make_init(model_config, optimizer, config.seed, prepare)
    if config.layerwise:
        init_state, train_step = make_layerwise(
            model_config, optimizer, schedule, config.seed, config.accumulate, config.grad_clip
        )
    abstract_state = jax.eval_shape(init_state)
    shardings = None
    if mesh is not None:
        shardings = make_state_shardings(mesh, optimizer, abstract_state)
        abstract_state = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            abstract_state,
            shardings,
        )
    if not config.layerwise:
        train_step = make_train_step(
            graphdef,
            optimizer,
            schedule,
            config.accumulate,
            shardings,
            adaptive=config.batch_size if config.adaptive_batch else None,
        )
    print(fira_jax.describe(optimizer, abstract_state.params))

    whole = slice(0, config.batch_size)
    # Of several batches joined for one update a process's share is no longer in one piece.
    share = whole if config.adaptive_batch else local_rows(mesh, config.batch_size)
    batches = tokens.train(config.batch_size, config.seed, rows=share)

    def next_batch(state: TrainState) -> tuple[jax.Array, int]:
        count = batches_per_update(config, state.opt_state)
        rows, size = next_rows(batches, count), count * config.batch_size
        return put_batch(rows, mesh, share, size), size * config.seq_len

    example = None
    if not config.adaptive_batch:  # whose batches have several sizes
        example = put_batch(np.zeros((config.batch_size, config.seq_len + 1), np.int32), mesh)

    def make_between(formats: Any) -> Between:
        if config.parametrization != "relora":
            return lambda step, state: state  # noqa: ARG005
        restart = make_restart(config, graphdef, formats)
        return lambda step, state: state if step % config.update_proj_gap else restart(state)

    return Task(
        init_state=init_state,
        abstract_state=abstract_state,
        train_step=train_step,
        next_batch=next_batch,
        data=batches,
        evaluate=_evaluation(config, make_evaluate(graphdef), tokens, mesh),
        example=example,
        shardings=shardings,
        make_between=make_between,
    )


def _evaluation(
    config: PretrainConfig, evaluate: Any, tokens: data.TokenData, mesh: Mesh | None
) -> Any:
    """The mean loss over the held-out text, the same batches every time."""
    micro_batch_size = config.batch_size // config.accumulate
    batches = [put_batch(batch["tokens"], mesh) for batch in tokens.validation(micro_batch_size)]
    return lambda state: {"eval_loss": evaluate(state.params, batches, state.frozen)}


def summarize(
    progress: Progress, abstract_state: TrainState, bytes_per_token: float
) -> dict[str, Any]:
    """What a finished run says of itself.

    Raises:
        DivergedError: If it ended with a validation loss that is NaN or infinite.
    """
    loss = progress.last["eval_loss"]
    if loss is None:
        raise DivergedError("the run ended with a validation loss that is NaN or infinite")
    return {
        "steps": progress.step,
        "eval_loss": loss,
        "perplexity": progress.last["perplexity"],
        "bits_per_byte": loss / math.log(2) / bytes_per_token,
        "tokens_per_second": progress.tokens / max(progress.seconds, 1e-9),
        "parameters": sum(x.size for x in jax.tree.leaves(abstract_state.params)),
        "optimizer_state_bytes": device_bytes(abstract_state.opt_state),
    }


def resolve_model(config: PretrainConfig) -> LlamaConfig:
    """The named architecture in the run's dtype."""
    model_config, _ = load_model_config(config.model)
    numerics: Any = {"dtype": config.dtype, "param_dtype": config.dtype, "remat": config.remat}
    return dataclasses.replace(model_config, **numerics)


def load_data(config: PretrainConfig, vocab_size: int) -> data.TokenData:
    """The run's text in tokens that the model knows; the first use of a text prepares it."""
    if vocab_size >= 32_000:
        fitting = "mistral"
    else:
        fitting = "bytes" if vocab_size == 258 else f"bpe-{vocab_size}"
    tokens = data.load(
        data.DataConfig(
            dataset=config.dataset,
            tokenizer=config.tokenizer or fitting,
            seq_len=config.seq_len,
            validation_tokens=config.validation_tokens,
        )
    )
    if tokens.vocab_size > vocab_size:
        raise ValueError(
            f"tokenizer {config.tokenizer} has {tokens.vocab_size} ids, more than the "
            f"vocabulary of {vocab_size} of model {config.model}"
        )
    return tokens

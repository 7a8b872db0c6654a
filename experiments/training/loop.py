"""The training loop, and everything that makes a run resumable."""

import contextlib
import dataclasses
import functools
import json
import math
import time
from contextlib import closing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import fira_jax
from experiments.files import write_atomically
from experiments.llama.configs import load_model_config
from experiments.llama.model import LlamaConfig
from experiments.llama.parametrization import make_restart, parametrize, restarting
from experiments.mesh import first_process_first, is_first_process, make_mesh, put_batch
from experiments.text import batches as data
from experiments.training.adaptive_batch import batches_per_update, next_rows
from experiments.training.checkpoint import Checkpoints
from experiments.training.config import FREE_KEYS, PretrainConfig, claim
from experiments.training.layerwise_step import make_layerwise
from experiments.training.metrics import MetricsLog, NoLog, ProgressLine, read_metrics
from experiments.training.optimizers import build_optimizer, learning_rate_schedule
from experiments.training.step import (
    lower_update,
    make_evaluate,
    make_init,
    make_state_shardings,
    make_train_step,
)
from fira_jax.cost.memory import device_bytes

# A single spike may pass; after this many updates without a finite loss nothing comes back.
PATIENCE = 20


class DivergedError(RuntimeError):
    """The loss stayed NaN or infinite."""


def run(config: PretrainConfig) -> dict[str, Any]:
    """Trains as ``config`` says, continuing whatever its directory holds.

    Returns:
        The contents of ``summary.json``, or ``{}`` if ``stop_after`` came first.

    Raises:
        ValueError: If the directory holds a different run, or a setting is impossible.
        DivergedError: If the loss stayed NaN or infinite for ``PATIENCE`` updates.
    """
    directory = config.directory
    summary_path = directory / "summary.json"
    model_config = resolve_model(config)
    with first_process_first():
        tokens = load_data(config, model_config.vocab_size)
    mesh = make_mesh(config.mesh) if config.mesh else None
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in FREE_KEYS}
    resolved = {
        "run": settings,
        "model": dataclasses.asdict(model_config),
        "data": {"fingerprint": tokens.fingerprint},
    }
    with first_process_first():
        claim(directory, resolved)
    if summary_path.exists():
        print(f"{directory}: already finished, nothing to do")
        return json.loads(summary_path.read_text())

    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        return _train(config, model_config, tokens, mesh)


def _train(
    config: PretrainConfig, model_config: LlamaConfig, tokens: data.TokenData, mesh: Mesh | None
) -> dict[str, Any]:
    """The run itself, once it is known what it is and that it is not finished."""
    directory = config.directory
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
    print(fira_jax.describe(optimizer, abstract_state.params))

    batches = tokens.train(config.batch_size, config.seed)
    micro_batch_size = config.batch_size // config.accumulate
    validation = [put_batch(batch["tokens"], mesh) for batch in tokens.validation(micro_batch_size)]
    checkpoints = Checkpoints(directory / "checkpoints")
    start = checkpoints.latest_step
    stop = min(config.steps, config.stop_after or config.steps)

    if not config.layerwise:
        train_step = make_train_step(
            graphdef,
            optimizer,
            schedule,
            config.accumulate,
            shardings,
            adaptive=config.batch_size if config.adaptive_batch else None,
        )
    evaluate = make_evaluate(graphdef)
    log = MetricsLog(directory, start) if is_first_process() else NoLog()
    with (
        closing(batches),
        closing(checkpoints),
        closing(log),
        ProgressLine(start, config.steps, config.batch_size * config.seq_len) as line,
    ):
        report = DelayedReport(log, line)
        formats = shardings  # where the state lies, and in which order
        if start < stop and not config.adaptive_batch:  # whose batches have several sizes
            line.say("compiling the update ...")
            began = time.perf_counter()
            example = put_batch(np.zeros((config.batch_size, config.seq_len + 1), np.int32), mesh)
            train_step = lower_update(train_step, abstract_state, example).compile()
            formats = train_step.input_formats[0][0]
            line.say(f"compiled in {time.perf_counter() - began:.1f} s")
        # Only now, so that there is never a second copy in another order.
        if start:
            state, seconds = checkpoints.restore(abstract_state, batches)
            state = jax.device_put(state, formats, donate=True)
            line.say(f"continuing {directory} after step {start}")
        else:
            state, seconds = jax.jit(init_state, out_shardings=formats)(), 0.0
        restart = make_restart(config, graphdef, formats)
        began = time.perf_counter()
        for step in range(start + 1, stop + 1):
            rows = next_rows(batches, batches_per_update(config, state.opt_state))
            line.tokens_per_step = len(rows) * config.seq_len
            state, values = train_step(state, put_batch(rows, mesh))
            report.submit(step, values)
            if config.parametrization == "relora" and step % config.update_proj_gap == 0:
                state = restart(state)
            evaluate_now = step % config.eval_every == 0 or step == config.steps
            save_now = step % config.checkpoint_every == 0 or step == stop
            if not (evaluate_now or save_now):
                continue
            jax.block_until_ready(state)
            seconds += time.perf_counter() - began
            if evaluate_now:
                report.add({"eval_loss": evaluate(state.params, validation, state.frozen)})
            line.skip_time()
            if save_now:
                report.flush()  # a checkpoint never gets ahead of the log
                if report.bad_steps == 0:
                    checkpoints.save(step, state, batches, seconds)
            began = time.perf_counter()
        report.flush()
    if stop < config.steps:
        print(f"stopped after step {stop} of {config.steps}; without --stop-after it goes on")
        return {}

    if not is_first_process():
        return {}
    records = read_metrics(directory / "metrics.jsonl")
    last = records[-1]
    sequences = sum(record.get("batch_size", config.batch_size) for record in records)
    if last["eval_loss"] is None:
        raise DivergedError("the run ended with a validation loss that is NaN or infinite")
    summary = {
        "steps": config.steps,
        "eval_loss": last["eval_loss"],
        "perplexity": last["perplexity"],
        "bits_per_byte": last["eval_loss"] / math.log(2) / tokens.bytes_per_token,
        "tokens_per_second": sequences * config.seq_len / seconds,
        "parameters": sum(x.size for x in jax.tree.leaves(abstract_state.params)),
        "optimizer_state_bytes": device_bytes(abstract_state.opt_state),
    }
    write_atomically(directory / "summary.json", json.dumps(summary, indent=2) + "\n")
    print(
        f"finished: validation loss {summary['eval_loss']:.4f}, perplexity "
        f"{summary['perplexity']:.2f}; everything is in {directory}"
    )
    return summary


class DelayedReport:
    """Reports every update while the next one runs, so that Python never keeps the device waiting.

    Args:
        log: Gets every update's numbers.
        line: Shows them.
    """

    def __init__(self, log: MetricsLog | NoLog, line: ProgressLine):
        self._log, self._line = log, line
        self._waiting: tuple[int, dict[str, jax.Array]] | None = None
        self.bad_steps = 0  # updates without a finite loss since the last with one

    def submit(self, step: int, values: dict[str, jax.Array]) -> None:
        """Hands in an update just dispatched; reports the one before."""
        self.flush()
        self._waiting = step, values

    def add(self, values: dict[str, jax.Array]) -> None:
        """Adds numbers to the update handed in last."""
        assert self._waiting is not None
        self._waiting[1].update(values)

    def flush(self) -> None:
        """Waits for the update handed in last and reports it."""
        if self._waiting is None:
            return
        (step, values), self._waiting = self._waiting, None
        record = {"step": step} | {name: float(value) for name, value in values.items()}
        if "eval_loss" in record:
            record["perplexity"] = float(jnp.exp(record["eval_loss"]))
            self._line.say(f"step {step}  validation loss {record['eval_loss']:.4f}")
        self._log.write(record)
        self._line.update(step, record["train_loss"])
        self.bad_steps = 0 if math.isfinite(record["train_loss"]) else self.bad_steps + 1
        if self.bad_steps == PATIENCE:
            raise DivergedError(
                f"the loss has been NaN or infinite since step {step - PATIENCE + 1}: lower --lr, "
                "lengthen --warmup-steps or set --grad-clip, in a new --output-dir"
            )


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

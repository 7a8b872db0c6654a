"""One training run: the same weights and batches for every method of a seed."""

import dataclasses
import functools
import math
import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import fira_jax
from experiments.llama.configs import load_model_config
from experiments.llama.model import Llama, LlamaConfig
from experiments.llama.parametrization import (
    PARAMETRIZATIONS,
    make_restart,
    parametrize,
    restarting,
)
from experiments.reproduce.methods import METHODS
from experiments.reproduce.settings import MIN_LR_RATIO, SIZES, WARMUP_SHARE
from experiments.text import batches as data
from experiments.training.config import PretrainConfig
from experiments.training.step import (
    TrainState,
    make_evaluate,
    make_init,
    make_train_step,
    split,
)
from fira_jax.cost.memory import device_bytes


@dataclasses.dataclass(frozen=True, order=True)
class Run:
    """What tells one run from another."""

    method: str
    size: str
    rank: int
    seed: int
    lr: float
    steps: int


@functools.cache
def text_of(size: str) -> data.TokenData:
    """Batches of a size's text."""
    how = SIZES[size]
    return data.load(
        data.DataConfig(
            tokenizer="bytes", seq_len=how.seq_len, validation_tokens=how.validation_tokens
        )
    )


@functools.cache
def model_of(size: str) -> LlamaConfig:
    """The architecture of a size, with a vocabulary of bytes."""
    model, _ = load_model_config(SIZES[size].model)
    return dataclasses.replace(model, vocab_size=text_of(size).vocab_size)


def peak_to_schedule(peak: jax.typing.ArrayLike, steps: jax.typing.ArrayLike) -> optax.Schedule:
    """Linear warmup and a cosine, of a peak and a length that may be traced.

    Example:
        >>> schedule = peak_to_schedule(0.5, 200)
        >>> [round(float(schedule(count)), 3) for count in (0, 10, 20, 200)]
        [0.0, 0.25, 0.5, 0.05]
    """

    def schedule(count: Any) -> Any:
        warmup = WARMUP_SHARE * steps
        done = jnp.clip((count - warmup) / (steps - warmup), 0, 1)
        cosine = MIN_LR_RATIO + (1 - MIN_LR_RATIO) * 0.5 * (1 + jnp.cos(jnp.pi * done))
        return peak * jnp.where(count < warmup, count / warmup, cosine)

    return schedule


class Programs(NamedTuple):
    """Compiled once for all learning rates, seeds and lengths of a method."""

    init: Any
    step: Any
    evaluate: Any
    restart: Any
    """ReLoRA's, of a state and a seed; None for all others."""


@functools.cache
def programs(method: str, size: str, rank: int) -> Programs:
    """The programs of a method at one size and rank."""
    model, gap = model_of(size), SIZES[size].gap
    config = functools.partial(_parametrized, method, rank, gap)

    def optimizer(lr: Any, steps: Any, seed: Any) -> tuple[Any, optax.Schedule]:
        schedule = restarting(config(0), peak_to_schedule(lr, steps))
        return METHODS[method](schedule, rank, gap, seed), schedule

    def first(tx: Any, seed: Any) -> tuple[nnx.GraphDef, Any]:
        prepare = functools.partial(parametrize, config=config(seed))
        return make_init(model, tx, jax.random.key(seed), prepare)  # type: ignore[arg-type]

    graphdef, _ = first(optax.identity(), 0)

    @jax.jit
    def init(seed: Any) -> TrainState:
        return first(optimizer(1.0, 100, seed)[0], seed)[1]()

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, tokens: jax.Array, lr: Any, steps: Any, seed: Any) -> Any:
        tx, schedule = optimizer(lr, steps, seed)
        state, values = make_train_step(graphdef, tx, schedule, 1)(state, tokens)
        return state, values["train_loss"]

    @jax.jit
    def restart(state: TrainState, seed: Any) -> TrainState:
        return make_restart(config(seed), graphdef)(state)

    return Programs(init, step, make_evaluate(graphdef), restart if method == "relora" else None)


class Step(NamedTuple):
    """What is known after one step.

    The state is given up to the next one: use it before.
    """

    number: int
    state: TrainState
    loss: float
    seconds: float
    """Of this process on one thread, refreshes included: what else the machine does counts less."""


def steps_of(run: Run) -> Iterator[Step]:
    """Trains from random weights, a step at a time, until a loss is not finite."""
    how = SIZES[run.size]
    compiled = programs(run.method, run.size, run.rank)
    seed, lr, steps = jnp.int32(run.seed), jnp.float32(run.lr), jnp.float32(run.steps)
    state = compiled.init(seed)
    batches = text_of(run.size).train(batch_size=how.batch_size, seed=run.seed)
    for count in range(1, run.steps + 1):
        tokens = jnp.asarray(next(batches)["tokens"])
        began = time.process_time()
        state, loss = jax.block_until_ready(compiled.step(state, tokens, lr, steps, seed))
        if compiled.restart and count % how.gap == 0 and count < run.steps:
            state = jax.block_until_ready(compiled.restart(state, seed))
        yield Step(count, state, float(loss), time.process_time() - began)
        if not math.isfinite(loss):
            return


def train(run: Run) -> dict[str, Any]:
    """Trains from random weights and measures.

    Returns:
      A row for the tables. The loss of a run that diverged is None.
    """
    how, text = SIZES[run.size], text_of(run.size)
    evaluate = programs(run.method, run.size, run.rank).evaluate
    validation = [jnp.asarray(b["tokens"]) for b in text.validation(batch_size=16)]
    curve: list[tuple[int, float]] = []
    times, losses = [], []
    for count, state, loss, seconds in steps_of(run):
        times.append(seconds)
        losses.append(loss)
        if math.isfinite(loss) and (count % how.eval_every == 0 or count == run.steps):
            curve.append((count, float(evaluate(state.params, validation, state.frozen))))
    finished = bool(curve) and curve[-1][0] == run.steps and math.isfinite(curve[-1][1])
    final = curve[-1][1] if finished else None
    return {
        **dataclasses.asdict(run),
        "eval_loss": final,
        "best_eval_loss": min(loss for _, loss in curve) if finished else None,
        "perplexity": math.exp(final) if final is not None else None,
        "bits_per_byte": final / math.log(2) / text.bytes_per_token if final is not None else None,
        "state_bytes": device_bytes(state.opt_state),
        "matrix_state_bytes": _matrix_bytes(run.method, run.size, run.rank),
        "ms_per_step": 1e3 * float(np.mean(times[1:])),
        "ms_per_step_median": 1e3 * float(np.median(times[1:])),
        "curve": curve,
        "train_losses": [float(np.mean(losses[i : i + 20])) for i in range(0, len(losses), 20)],
    }


@functools.cache
def _matrix_bytes(method: str, size: str, rank: int) -> int:
    """Bytes of state of what stands for the attention and MLP matrices alone."""
    gap = SIZES[size].gap
    optimizer = METHODS[method](lambda _: 1.0, rank, gap, 0)

    def model() -> Llama:
        drawn = Llama(model_of(size), rngs=nnx.Rngs(0))
        parametrize(drawn, _parametrized(method, rank, gap, 0))
        return drawn

    params, _ = split(nnx.eval_shape(model))
    rows = fira_jax.describe(optimizer, params).rows
    return sum(row.state_bytes for row in rows if re.search("attn|mlp", row.path))


def _parametrized(method: str, rank: int, gap: int, seed: Any) -> PretrainConfig:
    """What says how the model's kernels are made up, if the method is about that."""
    name = method if method in PARAMETRIZATIONS else None
    return PretrainConfig(parametrization=name, rank=rank, update_proj_gap=gap, seed=seed)

"""Short training runs beside one another: the same seeds, weights and batches, one thing changed.

What ``benchmarks.low_precision``, ``benchmarks.continued`` and ``benchmarks.choices`` share. A
single pair of runs from random weights comes apart by more than most effects, whatever it is that
differs, so every comparison is made for several seeds (of weights, batches and the basis's sketch)
and carries its standard error. Runs that begin with trained weights stay together far better.
"""

import argparse
import dataclasses
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from rich.console import Console
from rich.progress import track
from rich.table import Table

import fira_jax
from experiments.files import write_atomically
from experiments.llama.configs import load_model_config
from experiments.llama.model import LlamaConfig, loss
from experiments.text import batches as data
from experiments.training.step import make_evaluate, make_init

RANK, GAP, BATCH_SIZE = 32, 50, 8
PRETRAINING_SEED = 1000  # no other run sees its batches in their order
Weights = Literal["float32", "bfloat16", "bfloat16, stochastic", "int8, stochastic"]


@dataclasses.dataclass(frozen=True)
class Run:
    """One optimizer, with its weights stored in one way.

    Attributes:
      make: builds the optimizer from a learning rate and a seed.
      lr: peak learning rate.
      weights: how they are stored between two steps.
      beside: the run with which it is compared; None if it is such a run.
    """

    make: Callable[[optax.Schedule, int], optax.GradientTransformation]
    lr: float
    weights: Weights = "float32"
    beside: str | None = None


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Weights that runs begin with, instead of random ones.

    Attributes:
      run: what trains them first, with a seed of its own.
      steps: for how long.
      lr_share: of its learning rate, how much each run that follows goes up to.
    """

    run: Run
    steps: int
    lr_share: float


def low_rank(method: Callable[..., Any], **options: Any) -> Callable[[optax.Schedule, int], Any]:
    """A method as the papers use it: attention and MLP are projected."""
    choose = fira_jax.match_paths(include=("attn", "mlp"))
    return lambda lr, seed: method(
        lr, RANK, GAP, weight_dimension_numbers=choose, seed=seed, **options
    )


def beside(name: str, run: Run, **changes: Any) -> Run:
    """The same with some things changed, to be compared with ``run``."""
    return dataclasses.replace(run, beside=name, **changes)


def train(
    run: Run,
    text: data.TokenData,
    model: LlamaConfig,
    steps: int,
    seed: int,
    name: str,
    first: Any = None,
) -> tuple[dict[str, Any], Any]:
    """Trains, from random weights or from ``first``, and measures.

    Returns:
      Perplexity on validation text, mean training loss of every ten steps, and the bytes of
      optimizer state and weights; and the weights.
    """
    schedule = optax.warmup_cosine_decay_schedule(0.0, run.lr, steps // 10, steps, run.lr / 10)
    optimizer = run.make(schedule, seed)
    graphdef, init = make_init(model, optimizer, seed)
    stochastic = fira_jax.precision.round_stochastically(seed)

    def store(params: Any) -> Any:
        if run.weights == "int8, stochastic":
            return fira_jax.precision.quantize_weights(params)
        return jax.tree.map(lambda p: p.astype(run.weights.split(",")[0]), params)

    def load(weights: Any) -> Any:
        params = fira_jax.precision.dequantize_weights(weights)
        return jax.tree.map(lambda p: p.astype(jnp.float32), params)

    @jax.jit
    def start() -> Any:
        _, params, state, _ = init()
        return store(params if first is None else first), state

    @jax.jit
    def step(weights: Any, state: Any, count: jax.Array, tokens: jax.Array) -> Any:
        params = load(weights)
        value, grads = jax.value_and_grad(lambda p: loss(nnx.merge(graphdef, p), tokens))(params)
        updates, state = optimizer.update(grads, state, params)
        if run.weights == "int8, stochastic":
            return fira_jax.precision.apply_quantized_updates(weights, updates, count), state, value
        if run.weights == "bfloat16, stochastic":
            counter = fira_jax.precision.StochasticRoundingState(count)
            updates, _ = stochastic.update(updates, counter, weights)
        return optax.apply_updates(weights, updates), state, value

    weights, state = start()
    losses = []
    batches = text.train(batch_size=BATCH_SIZE, seed=seed)
    for count in track(range(steps), description=name):
        tokens = jnp.asarray(next(batches)["tokens"])
        weights, state, value = step(weights, state, jnp.int32(count), tokens)
        losses.append(value)
    validation = (jnp.asarray(batch["tokens"]) for batch in text.validation(batch_size=16))
    mean_loss = make_evaluate(graphdef)(load(weights), validation)
    measured = {
        "perplexity": math.exp(float(mean_loss)),
        "train_losses": [
            round(float(jnp.mean(jnp.stack(losses[i : i + 10]))), 4)
            for i in range(0, len(losses), 10)
        ],
        "optimizer_state_bytes": sum(x.nbytes for x in jax.tree.leaves(state)),
        "weights_bytes": sum(x.nbytes for x in jax.tree.leaves(weights)),
    }
    return measured, load(weights)


def compare(
    runs: dict[str, Run],
    result: Path,
    description: str,
    *,
    steps: int = 150,
    seq_len: int = 64,
    validation_tokens: int = 32_768,
    pretrained: Pretrained | None = None,
) -> None:
    """Trains what has not been trained yet, prints and writes after every run.

    Args:
      runs: by their names; what is compared with a run comes after it.
      result: JSON to write, and to go on from.
      description: what the command does, for its help.
      steps: of each run, unless the command line says otherwise.
      seq_len: bytes in a sequence, likewise.
      validation_tokens: bytes that the perplexity is taken over.
      pretrained: what all runs begin with; None for random weights.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--seq-len", type=int, default=seq_len)
    parser.add_argument("--seeds", type=int, default=4)
    args = parser.parse_args()
    settings = {
        "model": "llama_1m",
        "batch_size": BATCH_SIZE,
        "steps": args.steps,
        "seq_len": args.seq_len,
        "validation_tokens": validation_tokens,
    }
    if pretrained is not None:
        runs = {k: dataclasses.replace(r, lr=r.lr * pretrained.lr_share) for k, r in runs.items()}
        settings |= {"pretrained_steps": pretrained.steps, "lr_share": pretrained.lr_share}
    trained: list[dict[str, Any]] = []
    if result.exists():
        before = json.loads(result.read_text())
        trained = before["trained"] if before["settings"] == settings else []

    text = data.load(
        data.DataConfig(
            tokenizer="bytes", seq_len=args.seq_len, validation_tokens=validation_tokens
        )
    )
    model, _ = load_model_config("llama_1m")
    model = dataclasses.replace(model, vocab_size=text.vocab_size)
    done = {(row["name"], row["seed"]) for row in trained}
    every = ((name, seed) for seed in range(args.seeds) for name in runs)
    missing = [one for one in every if one not in done]
    first, begins = None, {}
    if pretrained is not None and missing:
        measured, first = train(
            pretrained.run, text, model, pretrained.steps, PRETRAINING_SEED, "the beginning"
        )
        begins = {"begins_with_perplexity": measured["perplexity"]}
    for name, seed in missing:
        row, _ = train(runs[name], text, model, args.steps, seed, f"{name}, seed {seed}", first)
        trained.append({"name": name, "seed": seed, "lr": runs[name].lr, **row})
        result.parent.mkdir(parents=True, exist_ok=True)
        parts = {"settings": settings, **begins, "runs": summary(runs, trained), "trained": trained}
        write_atomically(result, json.dumps(parts, indent=1) + "\n")

    table = Table("", "perplexity", "beside", "state", "weights")
    for row in summary(runs, trained):
        drift = ""
        if row["drift_percent"] is not None:
            drift = f"{row['drift_percent']:+.3f} %"
        if row["standard_error"] is not None:
            drift += f" ± {row['standard_error']:.3f}"
        sizes = (f"{row[key] / 1e6:.2f} MB" for key in ("optimizer_state_bytes", "weights_bytes"))
        table.add_row(row["name"], f"{row['perplexity']:.3f}", drift, *sizes)
    Console().print(table)


def summary(runs: dict[str, Run], trained: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each kind of run: mean perplexity, and its drift from what it is beside, seed by seed."""
    perplexities: dict[str, dict[int, float]] = {name: {} for name in runs}
    for row in trained:
        perplexities[row["name"]][row["seed"]] = row["perplexity"]
    rows = []
    for name, run in runs.items():
        ours, theirs = perplexities[name], perplexities[run.beside or name]
        drifts = [100 * (ours[s] / theirs[s] - 1) for s in ours if s in theirs]
        if not drifts:
            continue
        one = next(row for row in trained if row["name"] == name)
        error = statistics.stdev(drifts) / len(drifts) ** 0.5 if len(drifts) > 1 else None
        rows.append(
            {
                "name": name,
                "lr": run.lr,
                "seeds": len(drifts),
                "perplexity": statistics.fmean(ours.values()),
                "drift_percent": statistics.fmean(drifts) if run.beside else None,
                "standard_error": error if run.beside else None,
                "optimizer_state_bytes": one["optimizer_state_bytes"],
                "weights_bytes": one["weights_bytes"],
            }
        )
    return rows

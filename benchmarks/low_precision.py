"""What quantized state and weights cost in perplexity, beside the same run in float32.

    python -m benchmarks.low_precision

Trains llama_1m on real text, byte by byte, with optimizer state, bases or weights in fewer bits,
beside a run in float32 from the same first weights over the same batches. Gradients are computed in
float32 always, from whatever the weights are stored as, so that nothing but their storage differs.
All of it for several seeds, of weights, batches and the basis's sketch: a single pair of runs comes
apart by more than most of these effects. Prints a table and writes docs/results/low_precision.json
after every run; a second call goes on where the first was stopped. About a quarter of an hour on
two cores.
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
from experiments import data
from experiments.metrics import write_atomically
from experiments.model import LlamaConfig, loss
from experiments.model_configs import load_model_config
from experiments.step import make_evaluate, make_init

RESULT = Path("docs/results/low_precision.json")
RANK, GAP = 32, 50
VALIDATION_TOKENS = 32_768
Weights = Literal["float32", "bfloat16", "bfloat16, stochastic", "int8, stochastic"]


@dataclasses.dataclass(frozen=True)
class Run:
    """One optimizer, with its weights stored in one way.

    Attributes:
      make: builds the optimizer from a learning rate and a seed.
      lr: peak learning rate.
      weights: how they are stored between two steps.
      beside: the run in float32 with which it is compared; None if it is such a run.
    """

    make: Callable[[optax.Schedule, int], optax.GradientTransformation]
    lr: float
    weights: Weights = "float32"
    beside: str | None = None


def low_rank(method: Callable[..., Any], **options: Any) -> Callable[[optax.Schedule, int], Any]:
    """A method as the papers use it: attention and MLP are projected."""
    choose = fira_jax.match_paths(include=("attn", "mlp"))
    return lambda lr, seed: method(
        lr, RANK, GAP, weight_dimension_numbers=choose, seed=seed, **options
    )


def in_8_bits(rounding: Literal["stochastic", "nearest"] = "stochastic") -> Any:
    """Adam with its moments in 8 bits, in the subspace and elsewhere."""
    return fira_jax.quantize_state(optax.scale_by_adam(eps=1e-6), rounding=rounding)


def adamw(**options: Any) -> Callable[[optax.Schedule, int], optax.GradientTransformation]:
    """Full-rank Adam, its state in 8 bits if there are any options."""
    adam = optax.scale_by_adam()
    if options:
        adam = fira_jax.quantize_state(adam, **options)
    return lambda lr, _: optax.chain(adam, optax.scale_by_learning_rate(lr))


FOUR_BITS = fira_jax.basis.Quantized(bits=4)
FIRA = Run(low_rank(fira_jax.fira, base_optimizer=optax.scale_by_adam(eps=1e-6)), 0.01)
GALORE = Run(low_rank(fira_jax.galore, base_optimizer=optax.scale_by_adam(eps=1e-6)), 0.02)
ADAMW = Run(adamw(), 0.0025)


def beside(name: str, run: Run, **changes: Any) -> Run:
    """The same with some things changed, to be compared with ``run``."""
    return dataclasses.replace(run, beside=name, **changes)


RUNS: dict[str, Run] = {
    "Fira": FIRA,
    "Fira, moments 8 bits": beside(
        "Fira", FIRA, make=low_rank(fira_jax.fira, base_optimizer=in_8_bits())
    ),
    "Fira, moments 8 bits, nearest": beside(
        "Fira", FIRA, make=low_rank(fira_jax.fira, base_optimizer=in_8_bits("nearest"))
    ),
    "Fira, moments 8 bits, basis 4": beside(
        "Fira", FIRA, make=low_rank(fira_jax.fira, base_optimizer=in_8_bits(), basis=FOUR_BITS)
    ),
    "Fira, bfloat16 weights": beside("Fira", FIRA, weights="bfloat16"),
    "Fira, bfloat16 weights, stochastic": beside("Fira", FIRA, weights="bfloat16, stochastic"),
    "GaLore": GALORE,
    "Q-GaLore": beside("GaLore", GALORE, make=low_rank(fira_jax.q_galore, eps=1e-6)),
    "Q-GaLore, int8 weights": beside(
        "GaLore", GALORE, make=low_rank(fira_jax.q_galore, eps=1e-6), weights="int8, stochastic"
    ),
    "AdamW": ADAMW,
    "AdamW, moments 8 bits": beside("AdamW", ADAMW, make=adamw(rounding="stochastic")),
    "AdamW, moments 8 bits, nearest": beside("AdamW", ADAMW, make=adamw(rounding="nearest")),
    "AdamW, bfloat16 weights": beside("AdamW", ADAMW, weights="bfloat16"),
    "AdamW, bfloat16 weights, stochastic": beside("AdamW", ADAMW, weights="bfloat16, stochastic"),
}


def train(
    run: Run, text: data.TokenData, model: LlamaConfig, steps: int, seed: int, name: str
) -> dict[str, Any]:
    """Trains from scratch and measures.

    Returns:
      Perplexity on validation text, and the bytes of optimizer state and weights.
    """
    schedule = optax.warmup_cosine_decay_schedule(0.0, run.lr, steps // 10, steps, run.lr / 10)
    optimizer = run.make(schedule, seed)
    graphdef, init = make_init(model, optimizer, seed)
    stochastic = fira_jax.round_stochastically(seed)

    def store(params: Any) -> Any:
        if run.weights == "int8, stochastic":
            return fira_jax.quantize_weights(params)
        return jax.tree.map(lambda p: p.astype(run.weights.split(",")[0]), params)

    def load(weights: Any) -> Any:
        params = fira_jax.dequantize_weights(weights)
        return jax.tree.map(lambda p: p.astype(jnp.float32), params)

    @jax.jit
    def start() -> Any:
        _, params, state = init()
        return store(params), state

    @jax.jit
    def step(weights: Any, state: Any, count: jax.Array, tokens: jax.Array) -> Any:
        params = load(weights)
        grads = jax.grad(lambda p: loss(nnx.merge(graphdef, p), tokens))(params)
        updates, state = optimizer.update(grads, state, params)
        if run.weights == "int8, stochastic":
            return fira_jax.apply_quantized_updates(weights, updates, count), state
        if run.weights == "bfloat16, stochastic":
            counter = fira_jax.StochasticRoundingState(count)
            updates, _ = stochastic.update(updates, counter, weights)
        return optax.apply_updates(weights, updates), state

    weights, state = start()
    batches = text.train(batch_size=8, seed=seed)
    for count in track(range(steps), description=name):
        tokens = jnp.asarray(next(batches)["tokens"])
        weights, state = step(weights, state, jnp.int32(count), tokens)
    validation = (jnp.asarray(batch["tokens"]) for batch in text.validation(batch_size=16))
    mean_loss = make_evaluate(graphdef)(load(weights), validation)
    return {
        "perplexity": math.exp(float(mean_loss)),
        "optimizer_state_bytes": sum(x.nbytes for x in jax.tree.leaves(state)),
        "weights_bytes": sum(x.nbytes for x in jax.tree.leaves(weights)),
    }


def main() -> None:
    """Trains what has not been trained yet, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seq-len", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=4)
    args = parser.parse_args()
    settings = {"model": "llama_1m", "batch_size": 8, "steps": args.steps, "seq_len": args.seq_len}
    trained: list[dict[str, Any]] = []
    if RESULT.exists():
        before = json.loads(RESULT.read_text())
        trained = before["trained"] if before["settings"] == settings else []

    text = data.load(
        data.DataConfig(
            tokenizer="bytes", seq_len=args.seq_len, validation_tokens=VALIDATION_TOKENS
        )
    )
    model, _ = load_model_config("llama_1m")
    model = dataclasses.replace(model, vocab_size=text.vocab_size)
    for seed in range(args.seeds):
        for name, run in RUNS.items():
            if any((row["name"], row["seed"]) == (name, seed) for row in trained):
                continue
            row = train(run, text, model, args.steps, seed, f"{name}, seed {seed}")
            trained.append({"name": name, "seed": seed, "lr": run.lr, **row})
            RESULT.parent.mkdir(parents=True, exist_ok=True)
            results = {"settings": settings, "runs": summary(trained), "trained": trained}
            write_atomically(RESULT, json.dumps(results, indent=1) + "\n")

    table = Table("", "perplexity", "beside float32", "state", "weights")
    for row in summary(trained):
        drift = ""
        if row["drift_percent"] is not None:
            drift = f"{row['drift_percent']:+.2f} %"
        if row["standard_error"] is not None:
            drift += f" ± {row['standard_error']:.2f}"
        sizes = (f"{row[key] / 1e6:.2f} MB" for key in ("optimizer_state_bytes", "weights_bytes"))
        table.add_row(row["name"], f"{row['perplexity']:.3f}", drift, *sizes)
    Console().print(table)


def summary(trained: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each kind of run: mean perplexity, and its drift from float32 seed by seed."""
    perplexities: dict[str, dict[int, float]] = {name: {} for name in RUNS}
    for row in trained:
        perplexities[row["name"]][row["seed"]] = row["perplexity"]
    rows = []
    for name, run in RUNS.items():
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


if __name__ == "__main__":
    main()

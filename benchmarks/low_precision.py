"""What quantized state and weights cost in perplexity, beside the same run in float32.

    python -m benchmarks.low_precision

Trains llama_1m on real text, byte by byte, from the same first weights over the same batches, with
optimizer state, bases or weights in fewer bits. Gradients are computed in float32 always, from
whatever the weights are stored as, so that nothing but their storage differs. Prints a table and
writes docs/results/low_precision.json after every run; a second call goes on where the first was
stopped. About a minute a run on two cores.
"""

import argparse
import dataclasses
import json
import math
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
      make: builds the optimizer from a learning rate.
      lr: peak learning rate.
      weights: how they are stored between two steps.
      beside: the run in float32 with which it is compared; None if it is such a run.
    """

    make: Callable[[optax.Schedule], optax.GradientTransformation]
    lr: float
    weights: Weights = "float32"
    beside: str | None = None


def low_rank(method: Callable[..., Any], **options: Any) -> Callable[[optax.Schedule], Any]:
    """A method as the papers use it: attention and MLP are projected."""
    choose = fira_jax.match_paths(include=("attn", "mlp"))
    return lambda lr: method(lr, RANK, GAP, weight_dimension_numbers=choose, **options)


def in_8_bits(rounding: Literal["stochastic", "nearest"] = "stochastic") -> Any:
    """Adam with its moments in 8 bits, in the subspace and elsewhere."""
    return fira_jax.quantize_state(optax.scale_by_adam(eps=1e-6), rounding=rounding)


def adamw(**options: Any) -> Callable[[optax.Schedule], optax.GradientTransformation]:
    """Full-rank Adam, its state in 8 bits if there are any options."""
    adam = optax.scale_by_adam()
    if options:
        adam = fira_jax.quantize_state(adam, **options)
    return lambda lr: optax.chain(adam, optax.scale_by_learning_rate(lr))


FOUR_BITS = fira_jax.basis.Quantized(bits=4)
FLOAT_ADAM = optax.scale_by_adam(eps=1e-6)
FIRA = Run(low_rank(fira_jax.fira, base_optimizer=FLOAT_ADAM), 0.003)
ADAMW = Run(adamw(), 0.0003)
RUNS: dict[str, Run] = {
    "Fira": FIRA,
    # How far two runs in float32 come apart that differ in nothing but the sketch's random numbers.
    "Fira, another seed": Run(
        low_rank(fira_jax.fira, base_optimizer=FLOAT_ADAM, seed=1), 0.003, beside="Fira"
    ),
    "Fira, moments 8 bits": Run(
        low_rank(fira_jax.fira, base_optimizer=in_8_bits()), 0.003, beside="Fira"
    ),
    "Fira, moments 8 bits, basis 4": Run(
        low_rank(fira_jax.fira, base_optimizer=in_8_bits(), basis=FOUR_BITS), 0.003, beside="Fira"
    ),
    "Fira, moments 8 bits, nearest": Run(
        low_rank(fira_jax.fira, base_optimizer=in_8_bits("nearest")), 0.003, beside="Fira"
    ),
    "GaLore": Run(low_rank(fira_jax.galore, base_optimizer=FLOAT_ADAM), 0.003),
    "Q-GaLore": Run(low_rank(fira_jax.q_galore, eps=1e-6), 0.003, beside="GaLore"),
    "Q-GaLore, int8 weights": Run(
        low_rank(fira_jax.q_galore, eps=1e-6), 0.003, "int8, stochastic", beside="GaLore"
    ),
    "AdamW": ADAMW,
    "AdamW, moments 8 bits": Run(adamw(rounding="stochastic"), 0.0003, beside="AdamW"),
    "AdamW, moments 8 bits, nearest": Run(adamw(rounding="nearest"), 0.0003, beside="AdamW"),
    "AdamW, bfloat16 weights": dataclasses.replace(ADAMW, weights="bfloat16", beside="AdamW"),
    "AdamW, bfloat16 weights, stochastic": dataclasses.replace(
        ADAMW, weights="bfloat16, stochastic", beside="AdamW"
    ),
    "Fira, bfloat16 weights": dataclasses.replace(FIRA, weights="bfloat16", beside="Fira"),
    "Fira, bfloat16 weights, stochastic": dataclasses.replace(
        FIRA, weights="bfloat16, stochastic", beside="Fira"
    ),
}


def train(run: Run, text: data.TokenData, model: LlamaConfig, steps: int, name: str) -> Any:
    """Trains from scratch and measures.

    Returns:
      Perplexity on validation text, and the bytes of optimizer state and weights.
    """
    schedule = optax.warmup_cosine_decay_schedule(0.0, run.lr, steps // 10, steps, run.lr / 10)
    optimizer = run.make(schedule)
    graphdef, init = make_init(model, optimizer, seed=0)
    stochastic = fira_jax.round_stochastically()

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
    batches = text.train(batch_size=8, seed=0)
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
    args = parser.parse_args()
    settings = {"model": "llama_1m", "batch_size": 8, **vars(args)}
    found: dict[str, Any] = {}
    if RESULT.exists():
        before = json.loads(RESULT.read_text())
        found = before["runs"] if before["settings"] == settings else {}

    text = data.load(
        data.DataConfig(
            tokenizer="bytes", seq_len=args.seq_len, validation_tokens=VALIDATION_TOKENS
        )
    )
    model, _ = load_model_config("llama_1m")
    model = dataclasses.replace(model, vocab_size=text.vocab_size)
    for name, run in RUNS.items():
        if name not in found:
            row = train(run, text, model, args.steps, name)
            if run.beside is not None:
                row["beside"] = run.beside
                row["drift_percent"] = 100 * (row["perplexity"] / _perplexity(found, run) - 1)
            found[name] = {"lr": run.lr, "weights": run.weights, **row}
            RESULT.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(RESULT, json.dumps({"settings": settings, "runs": found}, indent=1))

    table = Table("", "perplexity", "beside float32", "state", "weights")
    for name, row in found.items():
        drift = f"{row['drift_percent']:+.2f} %" if "drift_percent" in row else ""
        sizes = (f"{row[key] / 1e6:.2f} MB" for key in ("optimizer_state_bytes", "weights_bytes"))
        table.add_row(name, f"{row['perplexity']:.3f}", drift, *sizes)
    Console().print(table)


def _perplexity(found: dict[str, Any], run: Run) -> float:
    return found[str(run.beside)]["perplexity"]


if __name__ == "__main__":
    main()

"""Whether refreshing one matrix at a time spares the step that would refresh them all.

    python -m benchmarks.staggered                 # all parts
    python -m benchmarks.staggered --only losses   # needs no quiet machine

Updates: Fira's update alone on the matrices of a LLaMA-60M, with ``refresh="fixed"`` and
``"staggered"``, layers stacked and as parameters of their own, at every step between two times that
the first matrix is refreshed. All take turns at each step, round after round; a step's time is its
median over the rounds, so that what else the machine does at a moment counts little. The first step
of a run, at which every rule refreshes all, is not among them.

Training: whole steps of LLaMA-60M, forward and backward pass included, on 1,024 tokens, the first
24 of a gap in the same way. Of the 56 matrices, "staggered" refreshes seven at as many of them.

Losses: llama_1m on real text, byte by byte, with either rule, from the same first weights over the
same batches, for several seeds, with validation in between.

Prints tables and writes docs/results/staggered.json as it goes. Losses that are there already are
kept. About half an hour on two quiet cores.
"""

import argparse
import dataclasses
import json
import platform
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from rich.progress import track

import fira_jax
from benchmarks.printed import print_rows
from benchmarks.update_step import GAP, HIDDEN, INNER, LAYERS, RANK, parameters, set_count
from experiments.files import write_atomically
from experiments.llama.configs import load_model_config
from experiments.text import batches as data
from experiments.training.step import make_evaluate, make_init, make_train_step

RESULT = Path("docs/results/staggered.json")
RULES = ("fixed", "staggered")
# The training steps' tokens, and how many steps of a gap.
TRAINING_BATCH, TRAINING_SEQ_LEN, TRAINING_STEPS = 4, 256, 24
# The losses' runs: seven refreshes of each matrix.
STEPS, SMALL_GAP, SMALL_RANK, LEARNING_RATE, EVERY = 175, 25, 32, 0.01, 25
BATCH, SEQ_LEN, VALIDATION_TOKENS = 8, 64, 32_768


def fira(rule: str) -> optax.GradientTransformation:
    """Fira on attention and MLP, whose bases are refreshed by this rule."""
    matrices = fira_jax.match_paths(include=("attn", "mlp"))
    return fira_jax.fira(1e-3, RANK, GAP, refresh=rule, weight_dimension_numbers=matrices)


class Update:
    """One update of all matrices, compiled, with its state."""

    def __init__(self, rule: str, params: Any):
        tx = fira(rule)
        self.params, self.state = params, jax.jit(tx.init)(params)
        self.update = jax.jit(tx.update, donate_argnums=1)

    def seconds(self, count: int) -> float:
        """Wall time of the update that comes after ``count`` others."""
        self.state = set_count(self.state, count)
        begin = time.perf_counter()
        _, self.state = jax.block_until_ready(self.update(self.params, self.state, self.params))
        return time.perf_counter() - begin


class TrainingStep:
    """One training step of LLaMA-60M, forward and backward pass included, with its state."""

    def __init__(self, rule: str):
        model, _ = load_model_config("llama_60m")
        shape = (TRAINING_BATCH, TRAINING_SEQ_LEN + 1)
        self.tokens = jax.random.randint(jax.random.key(0), shape, 0, model.vocab_size)
        tx = fira(rule)
        graphdef, init = make_init(model, tx, seed=0)
        self.state = jax.jit(init)()
        self.step = make_train_step(graphdef, tx, lambda _: 1e-3, 1)

    def seconds(self, count: int) -> float:
        """Wall time of the step that comes after ``count`` others."""
        state = self.state._replace(opt_state=set_count(self.state.opt_state, count))
        begin = time.perf_counter()
        self.state, _ = jax.block_until_ready(self.step(state, self.tokens))
        return time.perf_counter() - begin


def measure_updates(rounds: int) -> list[dict[str, Any]]:
    """Times of all updates of a gap, one row for each rule and layout."""
    layers = parameters()
    stacked = {"layers": jax.tree.map(lambda *x: jnp.stack(x), *layers.values())}
    layouts = {"stacked": stacked, "separate": layers}
    return measure(
        {(layout, rule): Update(rule, layouts[layout]) for layout in layouts for rule in RULES},
        GAP,
        rounds,
    )


def measure_training(rounds: int) -> list[dict[str, Any]]:
    """Times of the first training steps of a gap, one row for each rule."""
    return measure(
        {("stacked", rule): TrainingStep(rule) for rule in RULES}, TRAINING_STEPS, rounds
    )


def measure(
    contenders: Mapping[tuple[str, str], Update | TrainingStep], positions: int, rounds: int
) -> list[dict[str, Any]]:
    """Times of the first ``positions`` steps of a gap, one row for each contender.

    Args:
      contenders: by how the layers are kept and by the rule.
      positions: how many steps.
      rounds: a step's time is its median over so many.
    """
    times: dict[Any, list[list[float]]] = {
        key: [[] for _ in range(positions)] for key in contenders
    }
    for contender in contenders.values():
        contender.seconds(0)
        contender.seconds(1)
    for done in range(rounds):
        for position in track(range(positions), description=f"round {done + 1} of {rounds}"):
            for key, contender in contenders.items():
                times[key][position].append(contender.seconds(GAP + position))
    rows = []
    for (layers, rule), by_position in times.items():
        steps = [statistics.median(x) for x in by_position]
        median = statistics.median(steps)
        refreshing = [steps[i] for i in refreshing_steps(rule, 7 * LAYERS) if i < positions]
        rows.append(
            {
                "layers": layers,
                "refresh": rule,
                "median_ms": 1e3 * median,
                "steps": positions,
                "steps_with_a_refresh": len(refreshing),
                "such_a_step_over_median": statistics.median(refreshing) / median,
                "slowest_over_median": max(steps) / median,
                "mean_over_median": statistics.fmean(steps) / median,
                "step_ms": [round(1e3 * x, 2) for x in steps],
            }
        )
    return rows


def refreshing_steps(rule: str, matrices: int) -> list[int]:
    """At which steps after the first gap any of so many matrices is refreshed, from 0."""
    schedule = fira_jax.refresh.resolve(rule)
    assert not isinstance(schedule, fira_jax.refresh.Rule)
    counts = range(GAP, 2 * GAP)
    every = jnp.arange(matrices)
    return [
        i for i, t in enumerate(counts) if bool(schedule(jnp.int32(t), every, matrices, GAP).any())
    ]


def train(rule: str, seed: int, text: data.TokenData) -> list[float]:
    """Validation losses, one every ``EVERY`` steps."""
    model, _ = load_model_config("llama_1m")
    model = dataclasses.replace(model, vocab_size=text.vocab_size)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, LEARNING_RATE, STEPS // 10, STEPS, LEARNING_RATE / 10
    )
    optimizer = fira_jax.fira(
        schedule,
        SMALL_RANK,
        SMALL_GAP,
        refresh=rule,
        seed=seed,
        weight_dimension_numbers=fira_jax.match_paths(include=("attn", "mlp")),
        base_optimizer=optax.scale_by_adam(eps=1e-6),
    )
    graphdef, init = make_init(model, optimizer, seed)
    step, evaluate = make_train_step(graphdef, optimizer, schedule, 1), make_evaluate(graphdef)
    state, losses = jax.jit(init)(), []
    batches = text.train(batch_size=BATCH, seed=seed)
    for count in track(range(STEPS), description=f"{rule}, seed {seed}"):
        state, _ = step(state, jnp.asarray(next(batches)["tokens"]))
        if (count + 1) % EVERY == 0:
            validation = (jnp.asarray(x["tokens"]) for x in text.validation(batch_size=16))
            losses.append(float(evaluate(state.params, validation)))
    return losses


def compare(trained: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean loss of either rule at each evaluation, and their difference seed by seed."""
    losses = {(row["refresh"], row["seed"]): row["losses"] for row in trained}
    seeds = [seed for rule, seed in losses if rule == "fixed" and ("staggered", seed) in losses]
    rows = []
    for i in range(STEPS // EVERY if len(seeds) > 1 else 0):
        fixed, staggered = ([losses[rule, seed][i] for seed in seeds] for rule in RULES)
        differences = [b - a for a, b in zip(fixed, staggered, strict=True)]
        rows.append(
            {
                "step": (i + 1) * EVERY,
                "seeds": len(seeds),
                "fixed": statistics.fmean(fixed),
                "staggered": statistics.fmean(staggered),
                "difference": statistics.fmean(differences),
                "standard_error": statistics.stdev(differences) / len(seeds) ** 0.5,
            }
        )
    return rows


def main() -> None:
    """Measures what is asked for, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("updates", "training", "losses"))
    parser.add_argument("--rounds", type=int, default=3, help="rounds over the steps of a gap")
    parser.add_argument("--seeds", type=int, default=4, help="runs of llama_1m with each rule")
    args = parser.parse_args()

    results: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}

    def write(**part: Any) -> None:
        results.update(part)
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(RESULT, json.dumps(results, indent=1) + "\n")

    if args.only in (None, "losses"):
        settings = {
            "model": "llama_1m", "rank": SMALL_RANK, "gap": SMALL_GAP, "lr": LEARNING_RATE,
            "steps": STEPS, "batch_size": BATCH, "seq_len": SEQ_LEN,
        }  # fmt: skip
        trained = results.get("trained", []) if results.get("settings") == settings else []
        text = data.load(
            data.DataConfig(tokenizer="bytes", seq_len=SEQ_LEN, validation_tokens=VALIDATION_TOKENS)
        )
        for seed in range(args.seeds):
            for rule in RULES:
                if not any((x["refresh"], x["seed"]) == (rule, seed) for x in trained):
                    row = {"refresh": rule, "seed": seed, "losses": train(rule, seed, text)}
                    trained.append(row)
                    write(settings=settings, losses=compare(trained), trained=trained)
    if args.only in (None, "training"):
        write(training=measure_training(args.rounds))
    if args.only in (None, "updates"):
        write(
            shapes=f"{LAYERS} layers, hidden {HIDDEN}, inner {INNER}, float32, rank {RANK}",
            machine=f"{platform.machine()}, {jax.device_count()} CPU device, jax {jax.__version__}",
            gap=GAP,
            rounds=args.rounds,
            updates=measure_updates(args.rounds),
        )
    for rows in (results.get(part, []) for part in ("updates", "training", "losses")):
        if rows:
            names = [name for name in rows[0] if name != "step_ms"]
            print_rows(rows, names)


if __name__ == "__main__":
    main()

"""Fine-tuning: one trained model, one task, with adapters and with optimizers on the weights.

    python -m experiments.reproduce finetuning --methods lora,galore,fira --budget-hours 1
    python -m experiments.reproduce finetuning --model minilm --tasks trec,sst2 --seeds 5

Every method begins at the same weights and sees the same examples in the same order; only attention
and MLP are trained, and of an encoder the classifier, which is drawn anew for every seed. Each
method has its own learning rate, searched for downhill on a seed that no table uses. Started again,
it goes on where it was stopped.
"""

import argparse
import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from experiments.compiled import cache_compiled
from experiments.files import console
from experiments.reproduce.budget import Budget, OutOfTimeError
from experiments.reproduce.search import downhill
from experiments.reproduce.settings import SEARCH_SEED
from experiments.reproduce.statistics import compare, finals, means
from experiments.reproduce.store import Book, Store
from experiments.training.finetune_config import FinetuneConfig
from experiments.training.finetuning import make_task
from experiments.training.scoring import Proportion
from experiments.training.subjects import Subject, subject_of
from fira_jax.cost.memory import device_bytes

PUBLISHED = Path("docs/results/finetuning.json")


def _on_weights(optimizer: str) -> dict[str, Any]:
    return {"adapter": "none", "optimizer": optimizer, "train": "matrices"}


METHODS: dict[str, dict[str, Any]] = {
    "adamw": _on_weights("adamw"),
    "fira": _on_weights("fira"),
    "fira_orthogonal": _on_weights("fira_orthogonal"),
    "galore": _on_weights("galore"),
    "apollo": _on_weights("apollo"),
    "gradnormlorp": _on_weights("gradnormlorp"),
    "adarankgrad": _on_weights("adarankgrad"),
    **{name: {"adapter": name} for name in ("lora", "dora", "lora_pro", "lora_ga", "lora_sb")},
}
SETTINGS: dict[str, Any] = {
    "model": "smollm2_135m",
    "steps": 40,
    "batch_size": 8,
    "test_examples": 100,
    "eval_every": 40,
    "warmup_steps": 4,
}
ENCODER = SETTINGS | {
    "model": "minilm",
    "steps": 100,
    "seq_len": 32,
    "test_examples": 300,
    "eval_every": 100,
    "warmup_steps": 10,
}
MODELS = {"smollm2_135m": SETTINGS, "minilm": ENCODER}
# Where the search begins. It saves runs; and where LoRA-GA learns nothing on the encoder, from five
# times its rate on, all rates are alike and nothing leads downhill.
FIRST_GUESS = {
    "smollm2_135m": {"adamw": 5e-5, "lora_sb": 5e-3},
    "minilm": {"adamw": 5e-4, "apollo": 5e-4, "lora_ga": 3e-4},
}
START = {"smollm2_135m": 1e-3, "minilm": 2.5e-3}


@dataclasses.dataclass(frozen=True, order=True)
class Run:
    """What tells one run from another."""

    method: str
    task: str
    rank: int
    seed: int
    lr: float
    model: str = "smollm2_135m"


def config_of(run: Run) -> FinetuneConfig:
    """The run, as ``experiments.finetune`` would be told of it."""
    given = {"task": run.task, "rank": run.rank, "seed": run.seed, "lr": run.lr}
    of_model = MODELS[run.model]
    tested = {"eval_examples": of_model["test_examples"]}
    flags: dict[str, Any] = given | METHODS[run.method] | of_model | tested
    return FinetuneConfig(**flags)


@functools.cache
def _subject(model: str, task: str) -> Subject:
    """Model and tokens do not depend on method, rank, seed or rate."""
    return subject_of(config_of(Run("lora", task, 1, 0, 0.0, model)))


def train(run: Run) -> dict[str, Any]:
    """Fine-tunes and tests; the loss of a run that diverged is None."""
    config = config_of(run)
    subject = _subject(run.model, run.task)
    _, task = make_task(config, subject, MODELS[run.model]["steps"])
    assert task.begin is not None
    state = task.begin(None)
    times = []
    between = task.make_between(None)
    for step in range(1, 1 + (config.steps or 0)):
        batch, _ = task.next_batch(state)
        began = time.process_time()
        state, values = jax.block_until_ready(task.train_step(state, batch))
        times.append(time.process_time() - began)
        state = between(step, state)
    task.data.close()
    found = {name: float(value) for name, value in task.evaluate(state).items()}
    finite = math.isfinite(found["eval_loss"])
    tested = min(config.eval_examples, len(subject.task.test))
    right = round(found["accuracy"] * tested)
    return {
        **dataclasses.asdict(run),
        "eval_loss": found["eval_loss"] if finite else None,
        "accuracy": found["accuracy"],
        "accuracy_interval": [*Proportion(right, tested).interval],
        "train_loss": float(values["train_loss"]) if finite else None,
        "trained_parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "state_bytes": device_bytes(state.opt_state),
        "ms_per_step": 1e3 * statistics.fmean(times[1:]),
    }


def settings() -> dict[str, Any]:
    """What is the same for all runs of a model."""
    return SETTINGS | {"search_seed": SEARCH_SEED, "methods": METHODS, "encoder": ENCODER}


def table(rows: list[dict[str, Any]], beside: str = "lora") -> list[dict[str, Any]]:
    """One line a model, method, task and rank: means over seeds, and a paired test beside LoRA."""
    lines: list[dict[str, Any]] = []
    for place in sorted({_place(row) for row in rows}):
        here = [row for row in rows if _place(row) == place]
        group = [_line(runs) for method in METHODS if (runs := finals(here, method))]
        compare(group, beside, here)
        lines += sorted(group, key=lambda line: line["eval_loss"])
    return lines


def _place(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["model"], row["task"], row["rank"]


def _line(runs: list[dict[str, Any]]) -> dict[str, Any]:
    accuracy = statistics.fmean(run["accuracy"] for run in runs)
    tested = len(runs) * MODELS[runs[0]["model"]]["test_examples"]
    return {
        **{key: runs[0][key] for key in ("model", "method", "task", "rank", "trained_parameters")},
        **means(runs),
        "accuracy": accuracy,
        # Of the examples; those of several seeds are the same ones, so it is a little too narrow.
        "accuracy_interval": [*Proportion(round(accuracy * tested), tested).interval],
    }


FINETUNING = Book(Run, settings, lambda rows: {"table": table(rows)})


def search_and_train(
    budget: Budget, methods: list[str], model: str, task: str, rank: int, seeds: range
) -> None:
    """Searches for every method's learning rate, then trains its seeds."""
    best = {method: _best_rate(budget, method, model, task, rank) for method in methods}
    for seed in seeds:
        for method, lr in best.items():
            budget.loss(Run(method, task, rank, seed, lr, model))


def _best_rate(budget: Budget, method: str, model: str, task: str, rank: int) -> float:
    losses = downhill(
        lambda lr: budget.loss(Run(method, task, rank, SEARCH_SEED, lr, model)),
        FIRST_GUESS[model].get(method, START[model]),
    )
    return min(losses, key=lambda lr: losses[lr])


def main(argv: Sequence[str]) -> None:
    """Trains what the command line asks for, as long as there is time, and prints the table."""
    parser = argparse.ArgumentParser(
        "experiments.reproduce finetuning", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--methods", default=",".join(METHODS), help="by default all")
    parser.add_argument("--model", choices=MODELS, default="smollm2_135m")
    parser.add_argument("--tasks", default="trec", help="as experiments.finetune names them")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget-hours", type=float, default=1.0)
    parser.add_argument("--output", type=Path, default=Path("runs/finetuning.json"))
    args = parser.parse_args(argv)
    methods = args.methods.split(",")
    if unknown := set(methods) - set(METHODS):
        parser.error(f"unknown methods {sorted(unknown)}; there are {', '.join(METHODS)}")
    cache_compiled()
    budget = Budget(Store(args.output, FINETUNING), args.budget_hours, train)
    try:
        for task in args.tasks.split(","):
            search_and_train(budget, methods, args.model, task, args.rank, range(args.seeds))
    except OutOfTimeError as error:
        console.print(str(error))
    Console().print(view(table(list(budget.store.rows.values()))))


def view(lines: list[dict[str, Any]]) -> Table:
    """The table for a terminal."""
    shown = Table(title="The same model, task and examples")
    for heading in ("method", "model", "task", "rank", "seeds", "lr", "accuracy", "loss", "state"):
        shown.add_column(heading, justify="left" if heading == "method" else "right")
    for line in lines:
        shown.add_row(
            line["method"],
            line["model"],
            line["task"],
            str(line["rank"]),
            str(line["seeds"]),
            f"{line['lr']:g}",
            f"{line['accuracy']:.1%}",
            f"{line['eval_loss']:.4f}",
            f"{line['state_bytes'] / 1e6:.1f} MB",
        )
    return shown

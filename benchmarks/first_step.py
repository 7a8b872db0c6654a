"""What comes before the first step: tracing, lowering and compiling, by the number of matrices.

    python -m benchmarks.first_step

A LLaMA-60M's layers as separate matrices (seven a layer), 8, 16 and 32 of them, at rank 128 in
float32. Each time is the processor's, not the clock's, so that other work on the machine does not
count; a compiler's threads do. Abstract arrays: nothing is allocated. Prints a table and writes
docs/results/first_step.json and docs/images/first_step.png. About five minutes on two quiet cores.
"""

import argparse
import itertools
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from rich.console import Console
from rich.table import Table

import fira_jax
from experiments.files import write_atomically

RESULT = Path("docs/results/first_step.json")
PICTURE = Path("docs/images/first_step.png")
HIDDEN, INNER, RANK = 512, 1376, 128

CANDIDATES: dict[str, Callable[[], optax.GradientTransformation]] = {
    "adamw": lambda: optax.adamw(1e-3),
    "optax.contrib.galore": lambda: optax.contrib.galore(1e-3, RANK),
    "fira": lambda: fira_jax.fira(1e-3, RANK),
    "galore": lambda: fira_jax.galore(1e-3, RANK),
    "fira, oja": lambda: fira_jax.fira(1e-3, RANK, basis="oja"),
    "apollo": lambda: fira_jax.apollo(1e-3, RANK),
    "muon": lambda: optax.contrib.muon(1e-3),
}


def parameters(layers: int) -> dict[str, Any]:
    """The projected matrices, abstract."""
    shapes = {
        **dict.fromkeys(("q", "k", "v", "o"), (HIDDEN, HIDDEN)),
        **dict.fromkeys(("gate", "up"), (HIDDEN, INNER)),
        "down": (INNER, HIDDEN),
    }
    layer = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    return {f"layer{i}": layer for i in range(layers)}


def measure(name: str, layers: int) -> dict[str, Any]:
    """One row: seconds of each stage."""
    tx, params = CANDIDATES[name](), parameters(layers)
    state = jax.eval_shape(tx.init, params)
    times = [time.process_time()]
    traced = jax.jit(tx.update).trace(params, state, params)
    times.append(time.process_time())
    lowered = traced.lower()
    times.append(time.process_time())
    lowered.compile()
    times.append(time.process_time())
    trace, lower, compile_ = (b - a for a, b in itertools.pairwise(times))
    return {
        "optimizer": name,
        "matrices": len(jax.tree.leaves(params)),
        "trace_seconds": trace,
        "lower_seconds": lower,
        "compile_seconds": compile_,
    }


def draw(rows: list[dict[str, Any]]) -> None:
    """Both parts over the number of matrices."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    titles = ("tracing and lowering", ["trace_seconds", "lower_seconds"]), (
        "compiling", ["compile_seconds"]
    )  # fmt: skip
    for axis, (title, keys) in zip(axes, titles, strict=True):
        for name in dict.fromkeys(row["optimizer"] for row in rows):
            mine = [row for row in rows if row["optimizer"] == name]
            seconds = [sum(row[key] for key in keys) for row in mine]
            axis.plot([row["matrices"] for row in mine], seconds, marker="o", label=name)
        axis.set(title=title, xlabel="matrices", ylabel="seconds", yscale="log")
    axes[0].legend(fontsize=8)
    figure.savefig(PICTURE, dpi=120)


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", nargs="+", type=int, default=[8, 16, 32])
    args = parser.parse_args()
    rows = []
    table = Table("optimizer", "matrices", "trace", "lower", "compile")
    for name in CANDIDATES:
        measure(name, 1)  # what JAX loads and caches once
        for layers in args.layers:
            row = measure(name, layers)
            rows.append(row)
            seconds = (row[f"{stage}_seconds"] for stage in ("trace", "lower", "compile"))
            table.add_row(name, str(row["matrices"]), *(f"{x:.2f} s" for x in seconds))
        versions = {"jax": jax.__version__, "machine": platform.machine()}
        write_atomically(RESULT, json.dumps({**versions, "rows": rows}, indent=1) + "\n")
        draw(rows)
    Console().print(table)


if __name__ == "__main__":
    main()

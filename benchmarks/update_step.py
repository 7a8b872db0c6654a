"""Time of one optimizer update on the weights of a LLaMA-60M, beside Optax's own optimizers.

    python -m benchmarks.update_step

All candidates run in one process, in turn, round after round; a ratio is the median of the ratios
within a round, so that a machine whose speed drifts does not favour anyone. "Floor" is the least
program with the same inputs and outputs: both products of every matrix, one read of its gradient,
one read and write of its moments, and no other arithmetic. Candidates:

- ordinary update: the step between two refreshes;
- refresh: what a step with a refresh takes beyond an ordinary one;
- compile: XLA's time for the whole update (tracing and lowering not counted).

Prints a table and writes docs/results/update_step.json. About six minutes on two quiet cores,
most of them compiling.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from rich.console import Console
from rich.progress import track
from rich.table import Table

import fira_jax
from experiments.files import write_atomically

RESULT = Path("docs/results/update_step.json")
HIDDEN, INNER, LAYERS, RANK, GAP = 512, 1376, 8, 128, 200


def parameters() -> dict[str, Any]:
    """The 56 projected matrices of a LLaMA-60M as separate parameters, and its norms.

    Separate, because optax.contrib.galore leaves stacked layers unprojected. Embedding and head
    are left out: every candidate runs the same Adam on them.
    """
    keys = iter(jax.random.split(jax.random.key(0), 7 * LAYERS))

    def matrix(m: int, n: int) -> jax.Array:
        return 1e-3 * jax.random.normal(next(keys), (m, n))

    def layer() -> dict[str, Any]:
        return {
            "attn": {name: matrix(HIDDEN, HIDDEN) for name in "qkvo"},
            "mlp": {
                "gate": matrix(HIDDEN, INNER),
                "up": matrix(HIDDEN, INNER),
                "down": matrix(INNER, HIDDEN),
            },
            "norms": {"first": jnp.ones(HIDDEN), "second": jnp.ones(HIDDEN)},
        }

    return {f"layer{i}": layer() for i in range(LAYERS)}


def floor() -> optax.GradientTransformation:
    """The least program that reads and writes what a low-rank Adam with a residual must."""
    low_rank = fira_jax.LowRank(RANK)

    def init(params: Any) -> Any:
        moments = fira_jax.scale_by_adam_in_subspace(low_rank).init(params)
        return fira_jax.low_rank_project(low_rank).init(params).bases, moments.mu, moments.nu

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        views = [leaf.view for leaf in low_rank.leaves(grads) if leaf]
        masked = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731
        leaves, treedef = jax.tree.flatten(grads)
        bases, mu, nu = (jax.tree.leaves(tree, is_leaf=masked) for tree in state)
        for i, view in enumerate(views):
            if view is not None:
                raw = view.project(bases[i], leaves[i])
                mu[i], nu[i] = mu[i] + raw, nu[i] + raw
                leaves[i] = view.lift(bases[i], mu[i] + nu[i]) + leaves[i]
        trees = (jax.tree.unflatten(treedef, x) for x in (leaves, bases, mu, nu))
        return next(trees), tuple(trees)

    return optax.GradientTransformation(init, update)


CANDIDATES: dict[str, Callable[[], optax.GradientTransformation]] = {
    "adamw": lambda: optax.adamw(1e-3),
    "optax.contrib.galore": lambda: optax.contrib.galore(1e-3, RANK, GAP),
    "galore": lambda: fira_jax.galore(1e-3, RANK, GAP),
    "galore, long side": lambda: fira_jax.galore(1e-3, RANK, GAP, side="long"),
    "fira": lambda: fira_jax.fira(1e-3, RANK, GAP),
    "fira, long side": lambda: fira_jax.fira(1e-3, RANK, GAP, side="long"),
    "floor": floor,
}


def set_count(state: Any, count: int) -> Any:
    """The state with its refresh counter at ``count``."""
    kinds = (fira_jax.transforms.LowRankProjectState, optax.contrib.GaLoreState)
    return jax.tree.map(
        lambda x: x._replace(count=jnp.asarray(count, jnp.int32)) if isinstance(x, kinds) else x,
        state,
        is_leaf=lambda x: isinstance(x, kinds),
    )


class Candidate:
    """One optimizer, compiled, with its state."""

    def __init__(self, name: str, params: Any):
        self.params = params
        tx = CANDIDATES[name]()
        self.state = jax.jit(tx.init)(params)

        def step(grads: Any, state: Any, params: Any) -> Any:
            return tx.update(grads, state, params)

        lowered = jax.jit(step, donate_argnums=1).lower(params, self.state, params)
        begin = time.perf_counter()
        self.update = lowered.compile()
        self.compile_seconds = time.perf_counter() - begin

    def seconds(self, count: int) -> float:
        """Wall time of one update whose refresh counter stands at ``count``."""
        self.state = set_count(self.state, count)
        begin = time.perf_counter()
        updates, self.state = jax.block_until_ready(
            self.update(self.params, self.state, self.params)
        )
        del updates
        return time.perf_counter() - begin


def ratios(times: dict[str, list[float]], name: str, base: str) -> dict[str, float]:
    """Median and quartiles of ``name`` over ``base`` within rounds."""
    pairs = [a / b for a, b in zip(times[name], times[base], strict=True)]
    low, median, high = statistics.quantiles(pairs, n=4)
    return {"median": median, "quartile_low": low, "quartile_high": high}


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60, help="rounds of ordinary updates")
    parser.add_argument("--refreshes", type=int, default=3, help="rounds of refreshes")
    parser.add_argument("--compiles", type=int, default=3, help="rounds of compilation")
    args = parser.parse_args()

    params = parameters()
    compiles: dict[str, list[float]] = {name: [] for name in CANDIDATES}
    for _ in track(range(args.compiles), description="compiling"):
        jax.clear_caches()
        candidates = {name: Candidate(name, params) for name in CANDIDATES}
        for name, candidate in candidates.items():
            compiles[name].append(candidate.compile_seconds)

    ordinary: dict[str, list[float]] = {name: [] for name in CANDIDATES}
    for i in track(range(args.rounds + 3), description="ordinary updates"):
        for name, candidate in candidates.items():
            seconds = candidate.seconds(1)
            if i >= 3:
                ordinary[name].append(seconds)

    refreshing = [name for name in CANDIDATES if name not in ("adamw", "floor")]
    refresh: dict[str, list[float]] = {name: [] for name in refreshing}
    for _ in track(range(args.refreshes), description="refreshes"):
        for name in refreshing:
            plain = statistics.median(ordinary[name])
            refresh[name].append(candidates[name].seconds(0) - plain)

    rows = []
    for name in CANDIDATES:
        row: dict[str, Any] = {
            "name": name,
            "update_ms": 1e3 * statistics.median(ordinary[name]),
            "compile_s": statistics.median(compiles[name]),
            "refresh_s": statistics.median(refresh[name]) if name in refresh else None,
            "state_mib": sum(x.nbytes for x in jax.tree.leaves(candidates[name].state)) / 2**20,
        }
        for base in ("adamw", "optax.contrib.galore", "floor"):
            row[f"update_over_{base}"] = ratios(ordinary, name, base)
        row["compile_over_adamw"] = ratios(compiles, name, "adamw")["median"]
        if name in refresh:
            row["refresh_speedup_over_optax"] = ratios(refresh, "optax.contrib.galore", name)[
                "median"
            ]
        rows.append(row)
    _print(rows)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "shapes": f"{LAYERS} layers, hidden {HIDDEN}, inner {INNER}, float32, rank {RANK}",
        "machine": f"{platform.machine()}, {jax.device_count()} CPU device, jax {jax.__version__}",
        "rounds": args.rounds,
        "rows": rows,
    }
    write_atomically(RESULT, json.dumps(result, indent=1) + "\n")


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table(
        "optimizer", "update, ms", "/ adamw", "/ optax galore", "/ floor", "refresh, s",
        "optax's refresh / this", "compile, s", "/ adamw", "state, MiB",
    )  # fmt: skip
    for row in rows:
        over = (row[f"update_over_{b}"] for b in ("adamw", "optax.contrib.galore", "floor"))
        table.add_row(
            row["name"],
            f"{row['update_ms']:.1f}",
            *(f"{r['median']:.2f}" for r in over),
            "-" if row["refresh_s"] is None else f"{row['refresh_s']:.2f}",
            "-" if row["refresh_s"] is None else f"{row['refresh_speedup_over_optax']:.0f}",
            f"{row['compile_s']:.2f}",
            f"{row['compile_over_adamw']:.2f}",
            f"{row['state_mib']:.1f}",
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()

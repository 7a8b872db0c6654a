"""What a refresh takes, in ordinary update steps of the same matrix.

    OPENBLAS_NUM_THREADS=1 python -m benchmarks.refresh_over_step

Fira on one matrix at rank 128. A step that moves the basis on and an ordinary step run in turn, in
one process; the refresh is what the first takes beyond the second, and the ratio is the median over
the rounds. The matrix has the spectrum that gradients have. The first refresh, which some bases
spend more on, is not timed. A step has two products of the matrix's size, so that a refresh by
``n`` more takes at least about ``n / 2`` steps.

Prints a table and writes docs/results/refresh_over_step.json. A minute on two quiet cores.
"""

import argparse
import json
import platform
import statistics
from pathlib import Path
from typing import Any

import jax
from rich.progress import track

import fira_jax
from benchmarks.printed import print_rows
from benchmarks.refresh_by_size import RANK, gradient, seconds
from experiments.files import write_atomically

RESULT = Path("docs/results/refresh_over_step.json")
SIZES = ((512, 1376), (4096, 4096))
BASES: dict[str, fira_jax.basis.Basis] = {
    "oja": fira_jax.basis.Oja(),
    "oja, rounds=2": fira_jax.basis.Oja(rounds=2),
    "power iteration": fira_jax.basis.PowerIteration(),
    "randomized, oversample=0": fira_jax.basis.Randomized(oversample=0),
    "randomized": fira_jax.basis.Randomized(),
}


def measure(basis: str, size: tuple[int, int], rounds: int) -> dict[str, Any]:
    """One row of the table."""
    grad = gradient(*size)
    tx = fira_jax.fira(
        1e-3, RANK, 2, basis=BASES[basis], weight_dimension_numbers=fira_jax.match_paths()
    )
    update = jax.jit(tx.update)
    _, before_step = update(grad, tx.init(grad), grad)  # the first refresh
    _, before_refresh = update(grad, before_step, grad)
    seconds(lambda g: update(g, before_refresh, g), grad)  # the first call after compiling
    steps, ratios = [], []
    for _ in track(range(rounds), description=f"{basis}, {size}"):
        step = seconds(lambda g: update(g, before_step, g), grad)
        refresh = seconds(lambda g: update(g, before_refresh, g), grad) - step
        steps.append(step)
        ratios.append(refresh / step)
    low, median, high = statistics.quantiles(ratios, n=4)
    return {
        "basis": basis,
        "matrix": f"{size[0]} x {size[1]}",
        "step_ms": 1e3 * statistics.median(steps),
        "refresh_over_step": median,
        "lower_quartile": low,
        "upper_quartile": high,
    }


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    rows = [measure(basis, size, args.rounds) for size in SIZES for basis in BASES]
    machine = f"{platform.machine()}, {jax.device_count()} CPU device, jax {jax.__version__}"
    result = {"machine": machine, "rank": RANK, "rounds": args.rounds, "rows": rows}
    write_atomically(RESULT, json.dumps(result, indent=1) + "\n")
    print_rows(rows)


if __name__ == "__main__":
    main()

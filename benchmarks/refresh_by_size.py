"""How much a randomized refresh saves over an exact one, by the size of the matrix.

    OPENBLAS_NUM_THREADS=2 python -m benchmarks.refresh_by_size
    OPENBLAS_NUM_THREADS=1 python -m benchmarks.refresh_by_size

The two bases find the same subspace of one square matrix, in turn, in one process: an exact SVD,
as GaLore's and Fira's code does it, and the randomized one. The matrix has the spectrum that
gradients have, a few strong directions and a long tail. Beside the times stand the share of the
exact subspace's energy that the randomized one holds, and what the products alone would take: those
with the matrix, which no range finder of as many power iterations can do without.

A large SVD gains by LAPACK's threads, small factorizations lose by them: so both are measured, each
in a process of its own, since the number is read when LAPACK is loaded.

Prints a table and puts its rows into docs/results/refresh_by_size.json. Two minutes on two quiet
cores, most of them LAPACK's SVD of the largest.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.progress import track

import fira_jax
from benchmarks.printed import print_rows
from experiments.files import write_atomically

RESULT = Path("docs/results/refresh_by_size.json")
RANK = 128
SIZES = (512, 1024, 2048, 4096)
RANDOMIZED = fira_jax.basis.Randomized()


def gradient(m: int, n: int) -> jax.Array:
    """A matrix whose i-th singular value falls about as 1 / i."""
    keys = jax.random.split(jax.random.key(0), 3)
    left, right, noise = map(jax.random.normal, keys, ((m, m), (m, n), (m, n)))
    strength = 1 / jnp.arange(1.0, m + 1)
    return (left * strength) @ right / m + 0.01 * noise / m**0.5


def products(grad: jax.Array) -> jax.Array:
    """The randomized basis's products with the gradient, and nothing else."""
    span = grad[:, : RANK + RANDOMIZED.oversample]
    for _ in range(RANDOMIZED.power_iterations + 1):
        span = grad @ (grad.T @ span)
    return span


def seconds(f: Callable[[jax.Array], jax.Array], grad: jax.Array) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    jax.block_until_ready(f(grad))
    return time.perf_counter() - begin


def measure(size: int, rounds: int) -> dict[str, Any]:
    """One row of the table."""
    grad, key = gradient(size, size), jax.random.key(1)

    def find(basis: Any) -> Callable[[jax.Array], jax.Array]:
        stored = basis.init(size, RANK, jnp.float32)
        return jax.jit(lambda g: basis.find(g, stored, RANK, key))

    contenders = {"exact": find(fira_jax.basis.Svd()), "randomized": find(RANDOMIZED)}
    energy = {name: float(jnp.sum(jnp.square(f(grad).T @ grad))) for name, f in contenders.items()}
    contenders["products"] = jax.jit(products)
    seconds(contenders["products"], grad)  # compiled before it is timed
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in track(range(rounds), description=f"{size} x {size}"):
        for name, f in contenders.items():
            times[name].append(seconds(f, grad))
    speedups = [a / b for a, b in zip(times["exact"], times["randomized"], strict=True)]
    return {
        "size": size,
        "rank": RANK,
        **{f"{name}_ms": 1e3 * statistics.median(x) for name, x in times.items()},
        "exact_over_randomized": statistics.median(speedups),
        "lowest": min(speedups),
        "highest": max(speedups),
        "share_of_exact_energy": energy["randomized"] / energy["exact"],
    }


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    threads = int(os.environ["OPENBLAS_NUM_THREADS"])  # experiments sets it, if nobody does
    rows = [{"lapack_threads": threads, **measure(size, args.rounds)} for size in SIZES]
    before = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    rows = [row for row in before if row["lapack_threads"] != threads] + rows
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    machine = f"{platform.machine()}, {jax.device_count()} CPU device, jax {jax.__version__}"
    result = {"machine": machine, "rounds": args.rounds, "rows": rows}
    write_atomically(RESULT, json.dumps(result, indent=1) + "\n")
    print_rows(rows)


if __name__ == "__main__":
    main()

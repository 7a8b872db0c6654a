"""How much of a real gradient each kind of basis captures, beside the exact SVD, and how fast.

    python -m benchmarks.basis_quality

Trains a LLaMA on real text for some steps with Fira and looks at the gradients of its projected
matrices on the way. "Captured" is the gradient's energy inside the subspace divided by what the
exact rank-r SVD captures, the most that is possible. Prints a table and writes
docs/results/basis_quality.json. About three minutes on two cores.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import fira_jax
from benchmarks.real_gradients import gradients
from experiments.files import write_atomically
from experiments.llama.configs import load_model_config

RESULT = Path("docs/results/basis_quality.json")
BASES: dict[str, fira_jax.basis.Basis] = {
    "svd": fira_jax.basis.Svd(),
    **{
        f"randomized p={p} q={q}": fira_jax.basis.Randomized(p, q)
        for p, q in ((16, 0), (8, 1), (16, 1), (16, 2))
    },
    "dct": fira_jax.basis.Dct(),
}


def captured(basis: fira_jax.basis.Basis, stack: jax.Array, rank: int) -> tuple[list[float], float]:
    """Energy captured in each matrix of ``[n, a, b]``, and milliseconds a matrix."""

    @jax.jit
    def find(grad: jax.Array) -> jax.Array:
        key = jax.random.key(0)
        stored = basis.init(grad.shape[0], rank, grad.dtype)
        assert stored is not None
        stored = basis.find(grad / jnp.abs(grad).max(), stored, rank, key)
        vectors = basis.vectors(stored, grad.shape[0], rank, grad.dtype, key)
        assert isinstance(vectors, jax.Array)
        return vectors

    jax.block_until_ready(find(stack[0]))
    begin = time.perf_counter()
    found = jax.block_until_ready([find(grad) for grad in stack])
    milliseconds = 1e3 * (time.perf_counter() - begin) / len(stack)
    pairs = zip(found, stack, strict=True)
    return [float(jnp.sum(jnp.square(p.T @ g))) for p, g in pairs], milliseconds


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["llama_1m:32", "llama_20m:64"])
    parser.add_argument("--at", nargs="+", type=int, default=[0, 20, 100])
    args = parser.parse_args()
    rows = []
    for name in args.models:
        model, rank = name.split(":")
        size = load_model_config(model)[0].vocab_size
        tokenizer = "mistral" if size >= 32_000 else f"bpe-{size}"
        taken = gradients(model, int(rank), max(args.at) + 1, args.at, tokenizer, batch_size=16)
        for step, stacks in taken:
            for kind, basis in BASES.items():
                ratios, times = [], []
                for stack in stacks:
                    sigma = np.linalg.svd(np.asarray(stack, np.float64), compute_uv=False)
                    most = np.sum(sigma[:, : int(rank)] ** 2, axis=1)
                    energy, milliseconds = captured(basis, stack, int(rank))
                    ratios += list(np.asarray(energy) / most)
                    times.append(milliseconds)
                rows.append(
                    {
                        "model": model,
                        "rank": int(rank),
                        "step": step,
                        "basis": kind,
                        "captured_min": min(ratios),
                        "captured_mean": statistics.mean(ratios),
                        "matrices": len(ratios),
                        "ms_per_matrix": statistics.mean(times),
                    }
                )
    table = Table("model", "rank", "step", "basis", "captured, least", "mean", "ms a matrix")
    for row in rows:
        table.add_row(
            row["model"],
            str(row["rank"]),
            str(row["step"]),
            row["basis"],
            f"{row['captured_min']:.4%}",
            f"{row['captured_mean']:.4%}",
            f"{row['ms_per_matrix']:.1f}",
        )
    Console().print(table)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(RESULT, json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""How much of the gradient each kind of basis holds over a run, by how often it is refreshed.

    python -m benchmarks.captured_energy

Trains a small LLaMA on real text, byte by byte, with Fira. All kinds see the same gradients of its
projected matrices; each keeps a basis of its own for every gap. "Energy" is the share of the
gradient's squared norm inside the subspace, the mean over matrices and over all steps, also those
without a refresh. "Over svd" compares it with that of the exact SVD of the same gap. Beside it
stand the products and factorizations of one refresh, counted by running it operation by operation.
Prints two tables and writes docs/results/captured_energy.json and docs/images/captured_energy.png.
About three minutes on two cores.
"""

import argparse
import dataclasses
import functools
import json
import statistics
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import fira_jax
from benchmarks.operations import count_operations
from benchmarks.printed import print_rows
from benchmarks.real_gradients import gradients
from experiments.files import write_atomically

RESULT = Path("docs/results/captured_energy.json")
PICTURE = Path("docs/images/captured_energy.png")


@dataclasses.dataclass(frozen=True)
class PulledInBfloat16(fira_jax.basis.Oja):
    """Oja's rule with products as a TPU takes them by default: of operands in bfloat16."""

    def pull(self, grad: jax.Array, basis: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What is inside, and where it pulls the basis."""
        grad, basis = rounded(grad), rounded(basis)
        inside = grad.T @ basis
        return inside, grad @ rounded(inside)


def rounded(x: jax.Array) -> jax.Array:
    """The nearest numbers of bfloat16."""
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


GAPS = (1, 5, 10, 50, 200)
KINDS: dict[str, fira_jax.basis.Basis] = {
    "svd": fira_jax.basis.Svd(),
    "randomized": fira_jax.basis.Randomized(),
    "power iteration": fira_jax.basis.PowerIteration(),
    "grassmann": fira_jax.basis.Grassmann(),
    "oja": fira_jax.basis.Oja(),
    "oja, pulled in bfloat16": PulledInBfloat16(),
    "oja, rounds=2": fira_jax.basis.Oja(rounds=2),
}


@functools.partial(jax.jit, static_argnums=0)
def refreshed(
    kind: fira_jax.basis.Basis, stack: jax.Array, stored: jax.Array, step: jax.Array
) -> jax.Array:
    """The bases of one stack, one matrix after another."""
    key = jax.random.fold_in(jax.random.key(0), step)

    def one(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        grad, old = pair
        unit = jnp.max(jnp.abs(grad)) if kind.scale_free else 1.0
        return kind.find(grad / unit, old, old.shape[1], key)

    return jax.lax.map(one, (stack, stored))


@jax.jit
def inside(stacks: list[jax.Array], bases: list[jax.Array]) -> jax.Array:
    """The mean share of energy over all matrices."""
    shares = [
        jnp.sum(jnp.square(basis.mT @ stack), (1, 2)) / jnp.sum(jnp.square(stack), (1, 2))
        for stack, basis in zip(stacks, bases, strict=True)
    ]
    return jnp.mean(jnp.concatenate(shares))


def shares_over(model: str, rank: int, steps: int) -> dict[tuple[str, int], list[jax.Array]]:
    """The share of energy at each step, for each kind and gap."""
    stored: dict[tuple[str, int], list[jax.Array]] = {}
    shares: dict[tuple[str, int], list[jax.Array]] = {}
    taken = gradients(model, rank, steps, range(steps), tokenizer="bytes", batch_size=8)
    for step, stacks in taken:
        for name, kind in KINDS.items():
            for gap in GAPS:
                mine = stored.get((name, gap)) or [
                    jnp.tile(kind.init(x.shape[1], rank, x.dtype), (len(x), 1, 1)) for x in stacks
                ]
                if step % gap == 0:
                    pairs = zip(stacks, mine, strict=True)
                    mine = [refreshed(kind, x, old, jnp.int32(step)) for x, old in pairs]
                stored[name, gap] = mine
                shares.setdefault((name, gap), []).append(inside(stacks, mine))
    return shares


def operations(kind: fira_jax.basis.Basis, rank: int, a: int, b: int) -> dict[str, int]:
    """Of a refresh that is not the first, on a matrix like a gradient."""
    key = jax.random.key(0)
    grad = jax.random.normal(key, (a, b)) / jnp.arange(1.0, a + 1)[:, None]
    start = kind.init(a, rank, jnp.float32)
    first = kind.find(grad / jnp.max(jnp.abs(grad)), start, rank, key)
    return count_operations(lambda g, old: kind.find(g, old, rank, key), grad, first)


def draw(rows: list[dict[str, Any]]) -> None:
    """Energy over that of the SVD by the gap."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    columns = {"energy_percent": "energy inside, %", "over_svd_percent": "over svd, same gap, %"}
    for axis, (column, title) in zip(axes, columns.items(), strict=True):
        for name in KINDS:
            mine = [row for row in rows if row["basis"] == name]
            axis.plot([r["gap"] for r in mine], [r[column] for r in mine], marker="o", label=name)
        axis.set(title=title, xlabel="steps between refreshes", xscale="log")
        axis.set_xticks(GAPS, map(str, GAPS))
    axes[0].legend(fontsize=8)
    figure.savefig(PICTURE, dpi=120)


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="llama_200k")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    shares = shares_over(args.model, args.rank, args.steps)
    means = {key: statistics.mean(map(float, values)) for key, values in shares.items()}
    rows = [
        {
            "basis": name,
            "gap": gap,
            "energy_percent": 100 * means[name, gap],
            "over_svd_percent": 100 * means[name, gap] / means["svd", gap],
        }
        for name in KINDS
        for gap in GAPS
    ]
    counts = [{"basis": n, **operations(kind, 128, 512, 1376)} for n, kind in KINDS.items()]
    settings = {"model": args.model, "rank": args.rank, "steps": args.steps, "tokenizer": "bytes"}
    text = json.dumps({**settings, "rows": rows, "operations": counts}, indent=1)
    write_atomically(RESULT, text + "\n")
    draw(rows)
    for each in (rows, counts):
        print_rows(each)


if __name__ == "__main__":
    main()

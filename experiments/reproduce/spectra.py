"""How low is the rank of a gradient? Its singular values along a run.

    python -m experiments.reproduce.spectra --sizes 200k,1m

Trains with Fira and takes, a few times, the gradient of one batch of validation text. Reported are
means over the attention and MLP matrices: singular values relative to the largest, the share of the
squared norm in the leading few, and the stable rank (the squared norm over the largest squared
singular value). Writes docs/results/spectra.json.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import fira_jax
from experiments.llama.model import loss
from experiments.reproduce.along import every, fill
from experiments.reproduce.methods import MATRICES
from experiments.reproduce.run import Run, model_of, steps_of, text_of
from experiments.reproduce.settings import SIZES
from experiments.training.step import make_init

RESULT = Path("docs/results/spectra.json")
LR = 0.01
SHARES = (16, 8, 4, 2)
"""The leading ones of so many parts of the width."""


def singular_values(grads: Any) -> np.ndarray:
    """Those of every attention and MLP matrix of one short side, ``[matrices, a]``."""
    low_rank = fira_jax.LowRank(1, weight_dimension_numbers=MATRICES)
    found = [
        jnp.linalg.svdvals(leaf.view.to_matrix(x))
        for leaf, x in zip(low_rank.leaves(grads), jax.tree.leaves(grads), strict=True)
        if leaf and leaf.view
    ]
    return np.concatenate([np.asarray(x).reshape(-1, x.shape[-1]) for x in found])


def line(values: np.ndarray) -> dict[str, Any]:
    """Means over matrices, of singular values ``[matrices, a]``.

    Example:
        >>> line(np.array([[2.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]))["energy_in_4th"]
        0.625
    """
    energy = np.square(values)
    whole = energy.sum(axis=-1)
    width = values.shape[-1]
    shares = {
        f"energy_in_{part}th": float(np.mean(energy[:, : max(1, width // part)].sum(-1) / whole))
        for part in SHARES
    }
    return {
        "matrices": len(values),
        "stable_rank": float(np.mean(whole / energy[:, 0])),
        **shares,
        "spectrum": [float(f"{x:.4g}") for x in np.mean(values / values[:, :1], axis=0)],
    }


def measure(size: str, seed: int) -> list[dict[str, Any]]:
    """A row for the first weights and for each quarter of the run."""
    how = SIZES[size]
    graphdef, init = make_init(model_of(size), optax.identity(), seed)
    tokens = next(iter(text_of(size).validation(batch_size=how.batch_size)))["tokens"]

    @jax.jit
    def gradient(params: Any) -> Any:
        return jax.grad(lambda p: loss(nnx.merge(graphdef, p), jnp.asarray(tokens)))(params)

    def row(count: int, params: Any) -> dict[str, Any]:
        return {
            "size": size,
            "seed": seed,
            "step": count,
            **line(singular_values(gradient(params))),
        }

    rows = [row(0, jax.jit(init)().params)]
    quarter = how.steps // 4
    for step in steps_of(Run("fira", size, how.ranks[0], seed, LR, how.steps)):
        if step.count % quarter == 0:
            rows.append(row(step.count, step.state.params))
    return rows


def main() -> None:
    """Measures what is missing and writes the file after each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="200k")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    fill(args.output, every(size=args.sizes.split(","), seed=range(args.seeds)), measure)


if __name__ == "__main__":
    main()

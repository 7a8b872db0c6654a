"""How low is the rank of a gradient, and of what a method makes of it?

    python -m experiments.reproduce.spectra --sizes 200k,1m

Trains, and takes four times the gradient of one batch of validation text and the update that the
weights then get. Reported are means over the attention and MLP matrices: singular values relative
to the largest, the share of the squared norm in the leading few, and the stable rank (the squared
norm over the largest squared singular value). Writes docs/results/spectra.json.
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
LR = {"fira": 0.01, "fira_tracked": 0.01, "fira_orthogonal": 0.08}
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


def measure(size: str, method: str, seed: int) -> list[dict[str, Any]]:
    """Two rows for each quarter of the run: a gradient there, and what the weights moved by."""
    how = SIZES[size]
    graphdef, init = make_init(model_of(size), optax.identity(), seed)
    tokens = next(iter(text_of(size).validation(batch_size=how.batch_size)))["tokens"]

    @jax.jit
    def gradient(params: Any) -> Any:
        return jax.grad(lambda p: loss(nnx.merge(graphdef, p), jnp.asarray(tokens)))(params)

    rows = []
    quarter, before = how.steps // 4, jax.jit(init)().params
    for count, state, *_ in steps_of(Run(method, size, how.ranks[0], seed, LR[method], how.steps)):
        if count % quarter == 0:
            moved = jax.tree.map(jnp.subtract, state.params, before)
            for of, tree in (("gradient", gradient(before)), ("update", moved)):
                place = {"size": size, "method": method, "seed": seed, "step": count, "of": of}
                rows.append(place | line(singular_values(tree)))
        if (count + 1) % quarter == 0:  # the state itself is given up to the next step
            before = jax.tree.map(jnp.copy, state.params)
    return rows


def main() -> None:
    """Measures what is missing and writes the file after each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="200k")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    keys = every(size=args.sizes.split(","), method=LR, seed=range(args.seeds))
    fill(args.output, keys, measure)


if __name__ == "__main__":
    main()

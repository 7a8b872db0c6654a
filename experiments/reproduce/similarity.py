"""Are a few coordinates enough to know how Adam scales a column? Fira's premise, measured.

    python -m experiments.reproduce.similarity

Along a run of Fira, full-rank Adam and Adam in the subspace see the same gradients. For every
matrix, and every column of each, the scaling factor is the norm of what Adam makes of it over its
own norm; Spearman's and Kendall's coefficients say whether both rank the matrices, and the columns
of a matrix, alike. Beside it the share of the gradient's energy that the subspace holds. Writes
docs/results/similarity.json.
"""

import argparse
import functools
from collections import defaultdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from scipy import stats

import fira_jax
from experiments.llama.model import loss
from experiments.reproduce.along import every, fill
from experiments.reproduce.methods import MATRICES
from experiments.reproduce.run import model_of, peak_to_schedule, text_of
from experiments.reproduce.settings import SIZES
from experiments.training.step import make_init

RESULT = Path("docs/results/similarity.json")
SAMPLE_EVERY, LR = 10, 0.02


def column_norms(x: jax.Array) -> jax.Array:
    """Norms of the columns of stacked matrices ``[N, a, b]``."""
    return jnp.linalg.norm(x, axis=-2)


def factors(
    view: Any, grad: jax.Array, full: jax.Array, node: fira_jax.Subspace
) -> dict[str, jax.Array]:
    """Scaling factors of each column ``[N, b]`` and matrix ``[N]``, at full rank and in few.

    Both in the canonical orientation, in which the columns are what the subspace leaves whole.
    """
    whole, adam = (view.canonical(view.to_matrix(x)) for x in (grad, full))
    pairs = {"full": (adam, whole), "low": (node.core, node.raw)}
    found = {}
    for name, (after, before) in pairs.items():
        a, b = column_norms(after), column_norms(before)
        found[f"column_{name}"] = a / jnp.maximum(b, 1e-12)
        found[f"matrix_{name}"] = jnp.linalg.norm(a, axis=-1) / jnp.linalg.norm(b, axis=-1)
    found["inside"] = jnp.sum(jnp.square(node.raw), (-2, -1)) / jnp.sum(jnp.square(whole), (-2, -1))
    return found


def measure(size: str, rank: int, seed: int) -> dict[str, Any]:
    """Trains with Fira and correlates the factors, averaged over the sampled steps."""
    how, text = SIZES[size], text_of(size)
    low_rank = fira_jax.LowRank(rank, how.gap, 0.25, weight_dimension_numbers=MATRICES, seed=seed)
    fira = fira_jax.fira(
        peak_to_schedule(LR, how.steps), rank, how.gap, weight_dimension_numbers=MATRICES, seed=seed
    )
    inside = optax.chain(
        fira_jax.low_rank_project(low_rank), fira_jax.scale_by_adam_in_subspace(low_rank)
    )
    full = optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-6)
    graphdef, init = make_init(model_of(size), optax.identity(), seed)
    params = jax.jit(init)().params
    state = fira.init(params), inside.init(params), full.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, tokens: jax.Array) -> Any:
        value, grads = jax.value_and_grad(lambda p: loss(nnx.merge(graphdef, p), tokens))(params)
        updates, fira_state = fira.update(grads, state[0], params)
        nodes, inside_state = inside.update(grads, state[1], params)
        adam, full_state = full.update(grads, state[2], params)
        is_node = lambda x: isinstance(x, fira_jax.Subspace)  # noqa: E731
        paths = jax.tree_util.tree_flatten_with_path(nodes, is_leaf=is_node)[0]
        flat = zip(paths, jax.tree.leaves(grads), jax.tree.leaves(adam), strict=True)
        measured = {
            jax.tree_util.keystr(path): factors(node.view, grad, of_adam, node)
            for (path, node), grad, of_adam in flat
            if is_node(node)
        }
        new = fira_state, inside_state, full_state
        return optax.apply_updates(params, updates), new, value, measured

    sums: dict[str, dict[str, Any]] = defaultdict(lambda: defaultdict(float))
    energy, samples = [], 0
    batches = text.train(batch_size=how.batch_size, seed=seed)
    for count in range(how.steps):
        tokens = jnp.asarray(next(batches)["tokens"])
        params, state, _, measured = step(params, state, tokens)
        if (count + 1) % SAMPLE_EVERY:
            continue
        samples += 1
        energy.append(float(np.mean([np.mean(m["inside"]) for m in measured.values()])))
        for name, parts in measured.items():
            for key, value in parts.items():
                sums[name][key] = sums[name][key] + np.asarray(value)
    return {
        "size": size,
        "rank": rank,
        "seed": seed,
        "samples": samples,
        **correlations(sums),
        "energy_inside": [round(x, 4) for x in energy],
    }


def correlations(sums: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Spearman's and Kendall's coefficients over all matrices, and mean over those of columns."""
    found = {}
    stacked = {
        name: np.concatenate([np.atleast_1d(parts[f"matrix_{name}"]) for parts in sums.values()])
        for name in ("full", "low")
    }
    columns = [
        (full, low)
        for parts in sums.values()
        for full, low in zip(parts["column_full"], parts["column_low"], strict=True)
    ]
    for name, of in (("spearman", stats.spearmanr), ("kendall", stats.kendalltau)):
        found[f"matrix_{name}"] = float(of(stacked["full"], stacked["low"]).statistic)
        each = [float(of(full, low).statistic) for full, low in columns]
        found[f"column_{name}"] = float(np.mean(each))
        found[f"column_{name}_lowest"] = float(np.min(each))
    found["matrices"] = len(columns)
    return found


def main() -> None:
    """Measures what is missing and writes the file after each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="200k")
    parser.add_argument("--ranks")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    for size in args.sizes.split(","):
        ranks = [int(r) for r in args.ranks.split(",")] if args.ranks else SIZES[size].ranks
        keys = every(size=[size], seed=range(args.seeds), rank=ranks)
        fill(args.output, keys, lambda **key: [measure(**key)])


if __name__ == "__main__":
    main()

"""What share of a whole training step the optimizer takes.

    python -m benchmarks.training_share

Timed on this CPU, for the shapes of LLaMA-60M and LLaMA-130M in float32: forward and backward on
one sequence of 256 tokens, and the update with the new weights, in turn; medians over the rounds.
The weights of each layer are separate matrices, since optax.contrib.galore leaves stacks
unprojected. Beside a step without a refresh stand the slowest step, which is one with a refresh if
there are any, and the mean over a gap. Forward and backward grow in proportion to the tokens and
the update does not: from the same times the share with 16,384 tokens is computed.

Computed, not timed: what benchmarks.training_share_predicted says of LLaMA-1B and LLaMA-7B on a v5e
and an RTX 4090.

Prints two tables and writes docs/results/training_share.json after each model; rows of models that
were not asked for stay. Ten minutes on two quiet cores.
"""

import argparse
import dataclasses
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from rich.progress import track

from benchmarks.printed import print_rows
from benchmarks.training_share_predicted import (
    GAPS,
    TOKENS,
    optimizers,
    predictions,
    separate,
    share,
)
from benchmarks.update_step import set_count
from experiments.files import write_atomically
from experiments.llama.configs import load_model_config
from experiments.llama.model import Llama, loss

RESULT = Path("docs/results/training_share.json")
TIMED_TOKENS = 256
MODELS = {"llama_60m": 128, "llama_130m": 256}


def seconds(f: Any, *args: Any) -> tuple[float, Any]:
    """Wall time of one call, and what it returns."""
    begin = time.perf_counter()
    result = jax.block_until_ready(f(*args))
    return time.perf_counter() - begin, result


class Timed:
    """One model's gradient, and the updates of each optimizer."""

    def __init__(self, model: str, rank: int) -> None:
        config, _ = load_model_config(model)
        config = dataclasses.replace(config, dtype=jnp.float32, param_dtype=jnp.float32)
        self.name, self.rank, self.layers = model, rank, config.num_layers
        self.graphdef, state = nnx.split(Llama(config, rngs=nnx.Rngs(0)))
        self.weights = nnx.to_pure_dict(state)
        self.batch = jnp.arange(TIMED_TOKENS + 1)[None] * 7919 % config.vocab_size
        self.gradient = jax.jit(
            jax.grad(lambda params, x: loss(nnx.merge(self.graphdef, params), x))
        )
        seconds(self.gradient, self.weights, self.batch)  # compiled

    def row(self, name: str, tx: optax.GradientTransformation, rounds: int) -> dict[str, Any]:
        """Times one optimizer beside the gradient."""
        # Copies, since the update takes what it is given.
        params = jax.tree.map(jnp.copy, separate(self.weights, self.layers))
        grads = separate(self.gradient(self.weights, self.batch), self.layers)

        def update(grads: Any, state: Any, params: Any) -> Any:
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        update = jax.jit(update, donate_argnums=(1, 2))
        gap = GAPS.get(name, 1)
        _, (params, state) = seconds(update, grads, jax.jit(tx.init)(params), params)
        backward, plain, slow = [], [], []
        for i in range(rounds + 1):
            passed, _ = seconds(self.gradient, self.weights, self.batch)
            taken, (params, state) = seconds(update, grads, set_count(state, 1), params)
            if i:  # the first warms up
                backward.append(passed)
                plain.append(taken)
        for _ in range(2 if gap > 1 else 0):
            taken, (params, state) = seconds(update, grads, set_count(state, gap), params)
            slow.append(taken)
        return self._shares(name, gap, backward, plain, slow)

    def _shares(
        self, name: str, gap: int, backward: list[float], plain: list[float], slow: list[float]
    ) -> dict[str, Any]:
        passes, least = statistics.median(backward), statistics.median(plain)
        most = min(slow) if slow else least
        mean = least + (most - least) / gap
        return {
            "model": self.name,
            "rank": self.rank,
            "optimizer": name,
            "gap": gap if gap > 1 else None,
            "forward_backward_ms": 1e3 * passes,
            "update_ms": 1e3 * least,
            "refresh_step_ms": 1e3 * most if slow else None,
            "mean_share_percent": share(mean, passes),
            "slowest_share_percent": share(most, passes),
            "mean_share_percent_16k": share(mean, passes * TOKENS / TIMED_TOKENS),
            "slowest_share_percent_16k": share(most, passes * TOKENS / TIMED_TOKENS),
        }


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    timed = json.loads(RESULT.read_text())["timed"] if RESULT.exists() else []
    timed = [row for row in timed if row["model"] not in args.models]
    computed = predictions()
    for model in args.models:
        bench = Timed(model, MODELS[model])
        for name, tx in track(optimizers(MODELS[model]).items(), description=model):
            timed.append(bench.row(name, tx, args.rounds))
        machine = f"{platform.machine()}, {jax.device_count()} CPU device, jax {jax.__version__}"
        result = {"machine": machine, "tokens": TIMED_TOKENS, "rounds": args.rounds}
        result |= {"timed": timed, "computed_not_timed": computed}
        write_atomically(RESULT, json.dumps(result, indent=1) + "\n")
    for rows in (timed, computed):
        print_rows(rows)


if __name__ == "__main__":
    main()

"""What a training step costs with one method beside another: all of them in turn, in one process.

    python -m experiments.reproduce.step_times --sizes 1m --batch-sizes 8,32,128

The times in the tables were taken on different days. Here each method trains one gap between
refreshes, then the next method does, several times over, so that whatever else the machine does
meets all of them. Reported are medians over the rounds of a step's time, refreshes included, and
of its ratio to released Fira's in the same round. Writes docs/results/step_times.json.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.reproduce.along import every, fill
from experiments.reproduce.run import programs, text_of
from experiments.reproduce.settings import SIZES

RESULT = Path("docs/results/step_times.json")
METHODS = ("adamw", "fira", "fira_tracked", "fira_orthogonal", "muon")
ROUNDS = 3


def measure(size: str, batch_size: int) -> list[dict[str, Any]]:
    """A row for each method."""
    how = SIZES[size]
    batches = text_of(size).train(batch_size=batch_size, seed=0)
    tokens = [jnp.asarray(next(batches)["tokens"]) for _ in range(how.gap)]
    seed, lr, steps = jnp.int32(0), jnp.float32(1e-3), jnp.float32(how.steps)
    compiled = {name: programs(name, size, how.ranks[0]) for name in METHODS}
    states = {name: program.init(seed) for name, program in compiled.items()}
    times: dict[str, list[float]] = {name: [] for name in METHODS}
    for count in range(-1, ROUNDS):
        for name, program in compiled.items():
            began = time.process_time()
            for batch in tokens if count >= 0 else tokens[:2]:  # compiled before it is timed
                states[name], _ = program.step(states[name], batch, lr, steps, seed)
            jax.block_until_ready(states[name])
            if count >= 0:
                times[name].append((time.process_time() - began) / how.gap)
    return [
        {
            "size": size,
            "batch_size": batch_size,
            "batch_bytes": batch_size * how.seq_len,
            "rank": how.ranks[0],
            "method": name,
            "ms_per_step": 1e3 * statistics.median(own),
            "beside_fira": statistics.median(
                x / y for x, y in zip(own, times["fira"], strict=True)
            ),
            "beside_fira_lowest": min(x / y for x, y in zip(own, times["fira"], strict=True)),
            "beside_fira_highest": max(x / y for x, y in zip(own, times["fira"], strict=True)),
        }
        for name, own in times.items()
    ]


def main() -> None:
    """Measures what is missing and writes the file after each size and batch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="1m")
    parser.add_argument("--batch-sizes", default="8", help="sequences in a batch")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    batch_sizes = [int(x) for x in args.batch_sizes.split(",")]
    fill(args.output, every(size=args.sizes.split(","), batch_size=batch_sizes), measure)


if __name__ == "__main__":
    main()

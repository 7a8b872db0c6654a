"""Does the limiter keep the loss from jumping? Spikes of the training loss with and without it.

    python -m experiments.reproduce.spikes --sizes 1m --seeds 3

Fira as released, without the limiter, and with the gradient clipped to a norm of 1 instead, at
learning rates from the best of the search up to eight times it. A spike is a step whose loss is
above the median of the 20 before it by more than six of their median deviations and by a tenth of a
nat. Writes docs/results/spikes.json.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.reproduce.along import every, fill
from experiments.reproduce.run import Run, steps_of
from experiments.reproduce.settings import SIZES

RESULT = Path("docs/results/spikes.json")
METHODS = ("fira", "fira_no_limiter", "fira_clipped")
LR, TIMES = 0.007071, (1, 4, 8)
WINDOW, DEVIATIONS, LEAST = 20, 6.0, 0.1


def jumps(losses: Sequence[float]) -> np.ndarray:
    """How far each spike is above the losses before it, in nats.

    Example:
        >>> losses = [3.0, 2.9] * 15 + [4.5] + [2.8, 2.7] * 5
        >>> np.round(jumps(losses), 2).tolist()
        [1.55]
    """
    found = []
    for at in range(WINDOW, len(losses)):
        before = np.asarray(losses[at - WINDOW : at])
        usual = float(np.median(before))
        deviation = float(np.median(np.abs(before - usual)))
        above = losses[at] - usual
        if above > max(DEVIATIONS * deviation, LEAST):
            found.append(above)
    return np.asarray(found)


def measure(size: str, method: str, times_lr: int, seed: int) -> list[dict[str, Any]]:
    """One run's spikes."""
    how = SIZES[size]
    run = Run(method, size, how.ranks[0], seed, times_lr * LR, how.steps)
    losses = [step.loss for step in steps_of(run)]
    diverged = not math.isfinite(losses[-1])
    found = jumps([x for x in losses if math.isfinite(x)])
    return [
        {
            "size": size,
            "method": method,
            "times_lr": times_lr,
            "seed": seed,
            "diverged": diverged,
            "spikes": len(found),
            "largest_jump": float(found.max(initial=0)),
            "last_losses": float(np.mean(losses[-WINDOW:])) if not diverged else None,
        }
    ]


def main() -> None:
    """Measures what is missing and writes the file after each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="1m")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    keys = every(size=args.sizes.split(","), method=METHODS, times_lr=TIMES, seed=range(args.seeds))
    fill(args.output, keys, measure)


if __name__ == "__main__":
    main()

"""Learning rates for the demo, found for every optimizer by the same rule.

    python -m experiments.demo_sweep    # about ten runs, 20 minutes on two idle cores

From 0.01 in steps of a factor 2, always downhill, until both neighbours of the best learning rate
end with a higher validation loss. Writes docs/results/demo_sweep.json; started again, it reuses
the finished runs.
"""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

from experiments import train
from experiments.demo import OPTIMIZERS, SETTINGS, SWEEP, run_config
from experiments.metrics import write_atomically

START = 0.01
RUNS = Path("runs/demo_sweep")


def main() -> None:
    """Searches for every optimizer's learning rate and records all that was tried."""
    runs = {}
    for name in OPTIMIZERS:
        losses = search(partial(final_loss, name))
        runs[name] = [{"lr": lr, "eval_loss": loss} for lr, loss in sorted(losses.items())]
        SWEEP.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(SWEEP, json.dumps({"settings": SETTINGS, "runs": runs}, indent=2) + "\n")


def search(loss_at: Callable[[float], float], start: float = START) -> dict[float, float]:
    """Every learning rate tried and its loss; the lowest lies between two higher ones.

    Example:
        >>> losses = search(lambda lr: abs(lr - 0.04), start=0.01)
        >>> sorted(losses), min(losses, key=losses.get)
        ([0.005, 0.01, 0.02, 0.04, 0.08], 0.04)
    """
    losses: dict[float, float] = {}
    best = start
    while True:
        for lr in (best / 2, best, best * 2):
            if lr not in losses:
                losses[lr] = loss_at(lr)
        lowest = min(losses, key=lambda lr: losses[lr])
        if lowest == best:
            return losses
        best = lowest


def final_loss(optimizer: str, lr: float) -> float:
    """Final validation loss of the demo's run at another learning rate; infinite if it diverges."""
    print(f"{optimizer}, learning rate {lr:g}")
    try:
        return train.run(run_config(optimizer, lr, RUNS / f"{optimizer}-{lr:g}"))["eval_loss"]
    except train.DivergedError as error:
        print(error)
        return math.inf


if __name__ == "__main__":
    main()

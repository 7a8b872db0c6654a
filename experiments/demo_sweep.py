"""Learning rates for the demo, found for every optimizer by the same rule.

    python -m experiments.demo_sweep              # about a dozen runs, half an hour on two cores
    python -m experiments.demo_sweep --rank 32    # the same at another rank

From 0.01 in steps of a factor 2, always downhill, until both neighbours of the best learning rate
end with a higher validation loss. Writes docs/results/demo_sweep.json (with the rank in its name if
that is not the demo's); started again, it reuses the finished runs.
"""

import argparse
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

from experiments.compiled import cache_compiled
from experiments.demo import OPTIMIZERS, SETTINGS, SWEEP, run_config
from experiments.files import write_atomically
from experiments.training import pretraining as train

START = 0.01
RUNS = Path("runs/demo_sweep")


def main() -> None:
    """Searches for every optimizer's learning rate and records all that was tried."""
    cache_compiled()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rank", type=int, default=SETTINGS["rank"], help="of GaLore and Fira")
    parser.add_argument("--optimizers", default=",".join(OPTIMIZERS), help="the others' stay")
    args = parser.parse_args()
    rank = args.rank
    output = SWEEP if rank == SETTINGS["rank"] else SWEEP.with_stem(f"{SWEEP.stem}_rank{rank}")
    settings = SETTINGS | {"rank": rank}
    before = json.loads(output.read_text()) if output.exists() else {}
    same = before["runs"] if before.get("settings") == settings else {}
    runs = {name: same[name] for name in OPTIMIZERS if name in same}
    for name in args.optimizers.split(","):
        losses = search(partial(final_loss, name, rank))
        runs[name] = [{"lr": lr, "eval_loss": loss} for lr, loss in sorted(losses.items())]
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, json.dumps({"settings": settings, "runs": runs}, indent=2) + "\n")


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


def final_loss(optimizer: str, rank: int, lr: float) -> float:
    """Final validation loss of the demo's run at other settings; infinite if it diverges."""
    print(f"{optimizer}, rank {rank}, learning rate {lr:g}")
    directory = RUNS / f"rank{rank}" / f"{optimizer}-{lr:g}"
    try:
        return train.run(run_config(optimizer, lr, directory, rank=rank))["eval_loss"]
    except train.DivergedError as error:
        print(error)
        return math.inf


if __name__ == "__main__":
    main()

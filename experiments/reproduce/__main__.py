"""The tables, run by run.

    python -m experiments.reproduce pretraining --sizes 1m --methods fira,galore --seeds 2
"""

import argparse
from pathlib import Path

from experiments.files import console
from experiments.reproduce.campaign import Campaign, OutOfTimeError
from experiments.reproduce.methods import METHODS
from experiments.reproduce.settings import SIZES
from experiments.reproduce.store import Store


def main() -> None:
    """Trains what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table")
    parser.add_argument("--sizes", default="200k")
    parser.add_argument("--methods", default="fira,galore,adamw")
    parser.add_argument("--ranks", default="")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget-hours", type=float, default=1.0)
    parser.add_argument("--output", type=Path, default=Path("runs/reproduce.json"))
    args = parser.parse_args()
    campaign = Campaign(Store(args.output), args.budget_hours)
    methods = args.methods.split(",")
    if unknown := set(methods) - set(METHODS):
        parser.error(f"unknown methods {sorted(unknown)}; there are {', '.join(METHODS)}")
    try:
        for size in args.sizes.split(","):
            ranks = [int(r) for r in args.ranks.split(",") if r] or SIZES[size].ranks
            campaign.table(methods, size, ranks, range(args.seeds))
    except OutOfTimeError as error:
        console.print(str(error))


if __name__ == "__main__":
    main()

"""Trains the runs of a table, and prints it.

    python -m experiments.reproduce pretraining --sizes 1m --methods fira,galore --seeds 2
    python -m experiments.reproduce better --budget-hours 2
    python -m experiments.reproduce finetuning --methods lora,galore,fira   # has flags of its own

Started again, it goes on where it was stopped. The learning rates are searched for, too, unless
the published file has them (``--search`` does so all the same).
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.files import console
from experiments.reproduce import finetuning
from experiments.reproduce.budget import OutOfTimeError
from experiments.reproduce.campaign import Campaign
from experiments.reproduce.methods import METHODS
from experiments.reproduce.settings import SIZES
from experiments.reproduce.statistics import summary
from experiments.reproduce.store import PUBLISHED, TABLES, Store


def main() -> None:
    """Trains what the command line asks for, as long as there is time."""
    parser = argparse.ArgumentParser("experiments.reproduce", description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--sizes", default="200k", help=f"some of {', '.join(SIZES)}")
    parser.add_argument("--methods", help="some of the table's, by default all")
    parser.add_argument("--ranks", help="by default those of the size")
    parser.add_argument("--seeds", type=int, help="by default as many as the table wants")
    parser.add_argument("--budget-hours", type=float, default=1.0)
    parser.add_argument("--lr", type=float, help="of all methods, instead of the search")
    parser.add_argument("--search", action="store_true", help="do not use published rates")
    parser.add_argument("--output", type=Path, default=Path("runs/reproduce.json"))
    args = parser.parse_args()

    table = TABLES[args.table]
    methods = args.methods.split(",") if args.methods else list(table.methods)
    if unknown := set(methods) - set(METHODS):
        parser.error(f"unknown methods {sorted(unknown)}; there are {', '.join(METHODS)}")
    published = [] if args.search else published_rows()
    campaign = Campaign(Store(args.output), args.budget_hours, published)
    seeds = range(table.seeds if args.seeds is None else args.seeds)
    try:
        for size in args.sizes.split(","):
            ranks = [int(r) for r in args.ranks.split(",")] if args.ranks else SIZES[size].ranks
            campaign.table(methods, size, ranks, seeds, args.lr)
    except OutOfTimeError as error:
        console.print(str(error))
    rows = [row for row in campaign.store.rows.values() if row["size"] in args.sizes.split(",")]
    Console().print(view(table.question, summary(rows, methods, table.beside)))


def published_rows() -> list[dict[str, Any]]:
    """The rows of the published file, if there is one."""
    return json.loads(PUBLISHED.read_text())["rows"] if PUBLISHED.exists() else []


def view(title: str, lines: list[dict[str, Any]]) -> Table:
    """The table for a terminal."""
    shown = Table(title=title)
    for heading in ("method", "size", "rank", "seeds", "lr", "loss", "±", "state", "ms of CPU"):
        shown.add_column(heading, justify="left" if heading == "method" else "right")
    for line in lines:
        shown.add_row(
            line["method"],
            line["size"],
            "–" if line["rank"] is None else str(line["rank"]),
            str(line["seeds"]),
            f"{line['lr']:g}",
            f"{line['eval_loss']:.4f}",
            "–" if line["spread"] is None else f"{line['spread']:.4f}",
            f"{line['state_bytes'] / 1e6:.3f} MB",
            f"{line['ms_per_step']:.0f}",
        )
    return shown


if __name__ == "__main__":
    if sys.argv[1:2] == ["finetuning"]:
        finetuning.main(sys.argv[2:])
    else:
        main()

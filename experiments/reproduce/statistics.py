"""Means, spreads and paired tests over seeds."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from scipy import stats

from experiments.reproduce.methods import WITHOUT_RANK
from experiments.reproduce.search import on_grid
from experiments.reproduce.settings import SEARCH_SEED

Row = dict[str, Any]


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number, by Holm's step-down rule.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    corrected = [0.0] * len(p_values)
    so_far = 0.0
    for place, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        so_far = max(so_far, min(1.0, (len(p_values) - place) * p_values[i]))
        corrected[i] = so_far
    return corrected


def paired(ours: dict[int, float], theirs: dict[int, float]) -> tuple[float, float | None, int]:
    """Mean difference over common seeds, the p-value of a paired t-test, and how many seeds.

    Example:
        >>> paired({0: 1.0, 1: 2.0, 2: 3.0}, {0: 1.1, 1: 2.1, 2: 3.2, 3: 9.0})[2]
        3
    """
    seeds = sorted(ours.keys() & theirs.keys())
    differences = [ours[seed] - theirs[seed] for seed in seeds]
    if not differences:
        return math.nan, None, 0
    p = None
    if len(differences) > 1 and statistics.pstdev(differences) > 0:
        p = float(stats.ttest_rel([ours[s] for s in seeds], [theirs[s] for s in seeds]).pvalue)
    return statistics.fmean(differences), p, len(seeds)


def summary(rows: Sequence[Row], methods: Sequence[str], beside: Sequence[str]) -> list[Row]:
    """One line a method, size and rank: mean and spread over seeds, and the tests beside others.

    A method without a rank has a line at each rank of the others, whose ``at_rank`` says which.

    Args:
      rows: finished runs, those of the search too.
      methods: which of them are in the table.
      beside: the methods that each is compared with. A family of tests, which are corrected
        together, is one size, one rank and one of these.
    """
    lines = []
    places = sorted(
        {(row["size"], row["rank"]) for row in rows if row["method"] not in WITHOUT_RANK}
    )
    for size, rank in places:
        here = [
            row
            for row in rows
            if row["size"] == size and (row["rank"] == rank or row["method"] in WITHOUT_RANK)
        ]
        group = [line for method in methods if (line := _line(here, method, size, rank))]
        if all(line["rank"] is None for line in group):
            continue
        for other in beside:
            compare(group, other, here)
        lines += sorted(group, key=lambda line: line["eval_loss"])
    return lines


def searched(rows: Sequence[Row], method: str) -> dict[float, float]:
    """Learning rates that the search tried, and their losses; those that diverged are left out."""
    return {
        row["lr"]: row["eval_loss"]
        for row in rows
        if row["method"] == method and row["seed"] == SEARCH_SEED and row["eval_loss"] is not None
    }


def best_rate(rows: Sequence[Row], method: str) -> float | None:
    """The learning rate with the lowest loss in the search; None if there was none."""
    tried = searched(rows, method)
    return min(tried, key=lambda lr: tried[lr], default=None)


def searches(rows: Sequence[Row]) -> list[Row]:
    """The best run of every search that is complete: both neighbors were tried and are worse.

    All of one seed, which no table uses: for methods whose other seeds are missing, this is all
    there is. The best of several runs is a little too good, for every method alike.
    """
    lines = []
    for place in sorted({(row["size"], row["rank"], row["method"]) for row in rows}):
        size, rank, method = place
        here = [row for row in rows if (row["size"], row["rank"], row["method"]) == place]
        tried = {on_grid(lr): loss for lr, loss in searched(here, method).items()}
        best = min(tried, key=lambda at: tried[at], default=None)
        if best is None or not {best - 1, best + 1} <= tried.keys():
            continue
        run = next(row for row in here if (row["seed"], on_grid(row["lr"])) == (SEARCH_SEED, best))
        lines.append(
            {
                "method": method,
                "size": size,
                "rank": None if method in WITHOUT_RANK else rank,
                "tried": len(tried),
                **{key: run[key] for key in ("lr", "eval_loss", "perplexity", "state_bytes")},
                "matrix_state_bytes": run["matrix_state_bytes"],
                "ms_per_step": run["ms_per_step"],
                **_sensitivity(here, method, run["lr"]),
            }
        )
    return sorted(lines, key=lambda line: (line["size"], line["eval_loss"]))


def finals(rows: Sequence[Row], method: str) -> list[Row]:
    """The table's rows: other seeds, at the best learning rate of the search if there was one."""
    best = best_rate(rows, method)
    return [
        row
        for row in rows
        if row["method"] == method and row["seed"] != SEARCH_SEED and best in (None, row["lr"])
    ]


def losses(rows: Sequence[Row], method: str) -> dict[int, float]:
    """Final losses by seed; infinite where it diverged."""
    return {row["seed"]: _end(row) for row in finals(rows, method)}


def _end(run: Row) -> float:
    return math.inf if run["eval_loss"] is None else run["eval_loss"]


def _line(rows: Sequence[Row], method: str, size: str, rank: int) -> Row | None:
    runs = finals(rows, method)
    if not runs:
        return None
    found = means(runs)
    return {
        "method": method,
        "size": size,
        "rank": None if method in WITHOUT_RANK else rank,
        "at_rank": rank,
        **found,
        "searched": bool(searched(rows, method)),
        "perplexity": math.exp(found["eval_loss"]),
        "matrix_state_bytes": runs[0]["matrix_state_bytes"],
        **_sensitivity(rows, method, found["lr"]),
    }


def means(runs: Sequence[Row]) -> Row:
    """Over the seeds of one method; all runs have one learning rate."""
    ends = [_end(run) for run in runs]
    return {
        "seeds": len(runs),
        "lr": runs[0]["lr"],
        "eval_loss": statistics.fmean(ends),
        "spread": statistics.stdev(ends) if len(ends) > 1 else None,
        "state_bytes": runs[0]["state_bytes"],
        "ms_per_step": statistics.fmean(run["ms_per_step"] for run in runs),
    }


def _sensitivity(rows: Sequence[Row], method: str, lr: float) -> Row:
    """How much the loss of the search rises at the neighbours of the best learning rate."""
    tried = {on_grid(row_lr): loss for row_lr, loss in searched(rows, method).items()}
    best = on_grid(lr)
    found = {}
    for name, steps in (("half", -2), ("below", -1), ("above", 1), ("twice", 2)):
        both = best in tried and best + steps in tried
        found[f"rise_at_{name}"] = tried[best + steps] - tried[best] if both else None
    return found


def compare(group: list[Row], other: str, rows: Sequence[Row]) -> None:
    """Adds to each line its mean difference from ``other``, in percent of perplexity, and p."""
    tested = []
    for line in group:
        difference, p, seeds = paired(losses(rows, line["method"]), losses(rows, other))
        known = line["method"] != other and seeds
        line[f"percent_beside_{other}"] = 100 * math.expm1(difference) if known else None
        line[f"p_beside_{other}"] = None
        if known and p is not None:
            tested.append((line, p))
    for (line, _), corrected in zip(tested, holm([p for _, p in tested]), strict=True):
        line[f"p_beside_{other}"] = corrected

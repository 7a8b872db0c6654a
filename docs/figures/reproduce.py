"""Draws the tables of experiments.reproduce: loss against tokens, time, and bytes of state.

python docs/figures/reproduce.py     # docs/results/reproduce.json -> docs/images/reproduce_*.png

Times are those of docs/results/step_times.json, which were taken side by side.
"""

import json
import math
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.demo_figure import STYLE

DOCS = Path(__file__).parents[1]
RESULTS = DOCS / "results" / "reproduce.json"
STEP_TIMES = DOCS / "results" / "step_times.json"
CURVES, TIMES, FRONT = (
    DOCS / "images" / f"reproduce_{name}.png" for name in ("curves", "times", "front")
)
TABLES = ("pretraining", "better")
NO_STATE = 1e4  # bytes: where a logarithmic axis shows none
LINE = 0.025  # nats: the height of a label
# Those that the curves show, in the demo's colours.
SHOWN = {
    "adamw": ("AdamW", STYLE["AdamW"][0]),
    "galore": ("GaLore", STYLE["GaLore"][0]),
    "fira": ("Fira", STYLE["Fira"][0]),
    "fira_tracked": ("Fira, tracked", STYLE["Fira, tracked"][0]),
    "fira_orthogonal": ("Fira, orthogonalized", STYLE["Fira, orthogonalized"][0]),
    "fira_4bit_rank_x4_tracked_gap10": ("Fira, tracked, 4 bits, rank × 4", "#CC79A7"),
}


def lines_of(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of the tables, each once."""
    lines = [line for name in TABLES for line in results["tables"][name]]
    return list({(line["method"], line["size"], line["at_rank"]): line for line in lines}.values())


def places(lines: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """Sizes and ranks, those with the most methods first."""
    count = Counter((line["size"], line["at_rank"]) for line in lines)
    return sorted(count, key=lambda place: (-count[place], place))


def at(lines: list[dict[str, Any]], size: str, rank: int) -> list[dict[str, Any]]:
    """The lines of one size and rank, with those that have no rank."""
    return [x for x in lines if (x["size"], x["at_rank"]) == (size, rank)]


def curve(rows: list[dict[str, Any]], line: dict[str, Any], search_seed: int) -> list[float]:
    """Mean training losses over the seeds of a line."""
    runs = [
        row["train_losses"]
        for row in rows
        if (row["method"], row["size"], row["lr"]) == (line["method"], line["size"], line["lr"])
        and line["rank"] in (None, row["rank"])
        and row["seed"] != search_seed
    ]
    return [statistics.fmean(at) for at in zip(*runs, strict=False)]


def draw(results: dict[str, Any], step_times: list[dict[str, Any]]) -> None:
    """Writes the pictures: curves of the headline, and the front where most methods are."""
    rcParams["font.size"] = 9
    lines = lines_of(results)
    compared = {"adamw", "galore", "fira", "fira_tracked"}
    headline = [
        place
        for place in sorted(places(lines))
        if compared <= {x["method"] for x in at(lines, *place)}
    ]
    figure, panels = grid(headline)
    for axes, (size, rank) in zip(panels, headline, strict=False):
        batch = results["settings"]["sizes"][size]
        thousand_tokens = batch["batch_size"] * batch["seq_len"] / 1e3
        curves(axes, results, at(lines, size, rank), dict.fromkeys(SHOWN, thousand_tokens))
        axes.set_xlabel("thousand tokens")
    name_colours(figure, panels)
    figure.savefig(CURVES, facecolor="white")

    seconds = {
        (row["size"], row["method"]): row["ms_per_step"] / 1e3
        for row in step_times
        if row["batch_size"] == results["settings"]["sizes"][row["size"]]["batch_size"]
    }
    timed = [place for place in headline if (place[0], "fira") in seconds]
    figure, panels = grid(timed)
    for axes, (size, rank) in zip(panels, timed, strict=False):
        own = {method: x for (of, method), x in seconds.items() if of == size}
        curves(axes, results, at(lines, size, rank), own)
        axes.set_xlabel("seconds of one core")
    name_colours(figure, panels)
    figure.savefig(TIMES, facecolor="white")

    size, rank = places(lines)[0]
    figure = Figure(figsize=(4.8, 6.4), dpi=150, layout="constrained")
    axes = figure.subplots()
    published = {line["method"] for line in results["tables"]["pretraining"]}
    front(axes, at(lines, size, rank), published)
    axes.set_title(f"LLaMA {size}, rank {rank} where there is one", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(FRONT, facecolor="white")


def grid(shown: list[tuple[str, int]]) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each size and rank, two in a row."""
    rows = -(-len(shown) // 2)
    figure = Figure(figsize=(6.0, 3.0 * rows), dpi=150, layout="constrained")
    panels = list(figure.subplots(rows, 2, squeeze=False).ravel())
    for axes, (size, rank) in zip(panels, shown, strict=False):
        axes.set_title(f"LLaMA {size}, rank {rank}")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    return figure, panels


def curves(
    axes: Axes, results: dict[str, Any], here: list[dict[str, Any]], of_a_step: dict[str, float]
) -> None:
    """Training loss against what a step of each method takes, of tokens or of time."""
    for line in here:
        method = line["method"]
        if method not in SHOWN or method not in of_a_step:
            continue
        label, colour = SHOWN[method]
        losses = curve(results["rows"], line, results["settings"]["search_seed"])[1:]
        steps = results["settings"]["sizes"][line["size"]]["steps"]
        spent = [of_a_step[method] * min(20 * (i + 2), steps) for i in range(len(losses))]
        axes.plot(spent, losses, color=colour, label=label)
    axes.set_ylabel("training loss, nats a byte")


def name_colours(figure: Figure, panels: list[Axes]) -> None:
    """One legend for all panels, above them."""
    named = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        named |= dict(zip(labels, handles, strict=True))
    figure.legend(
        named.values(), named, frameon=False, ncols=2, loc="outside upper left", fontsize=8
    )


def front(axes: Axes, here: list[dict[str, Any]], published: set[str]) -> None:
    """Final validation loss against the bytes of state of the projected matrices.

    Names of ``published`` methods stand where there is room, and in the table all of them.
    """
    named: list[tuple[float, float]] = []
    for line in sorted(here, key=lambda line: (line["method"] in SHOWN, line["eval_loss"])):
        method, loss = line["method"], line["eval_loss"]
        place = max(line["matrix_state_bytes"], NO_STATE) / 1e6
        label, colour = SHOWN.get(method, (None, "#777777" if method in published else "#cccccc"))
        axes.errorbar(
            place, loss, line["spread"] or 0, fmt="o", color=colour, elinewidth=1, label=label
        )
        if method in published - set(SHOWN) and all(
            abs(math.log(x / place)) > math.log(4) or abs(y - loss) > LINE for x, y in named
        ):
            named.append((place, loss))
            name, right = method.replace("_", " "), {"xytext": (6, 0), "va": "center"}
            axes.annotate(
                name, (place, loss), **right, textcoords="offset points", fontsize=8, color=colour
            )
    axes.legend(frameon=False, loc="upper left")
    axes.set_xscale("log")
    axes.set_xlim(right=4 * max(line["matrix_state_bytes"] for line in here) / 1e6)
    axes.set_xlabel("state of attention and MLP, MB (leftmost: none)")
    axes.set_ylabel("validation loss, nats a byte")


if __name__ == "__main__":
    draw(json.loads(RESULTS.read_text()), json.loads(STEP_TIMES.read_text())["rows"])

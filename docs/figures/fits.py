"""Draws what one training step needs of each chip: weights, optimizer state and all the rest.

python docs/figures/fits.py     # docs/results/fits.json -> docs/images/fits.png
"""

import itertools
import json
import sys
from pathlib import Path
from typing import Any

from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.patches import Patch

DOCS = Path(__file__).parents[1]
sys.path.insert(0, str(DOCS / "_ext"))

from tables import NAMES  # noqa: E402

RESULTS, PICTURE = DOCS / "results" / "fits.json", DOCS / "images" / "fits.png"
# Colours that people with any kind of colour vision can tell apart (Okabe and Ito).
PARTS = {"weights": "#0072B2", "optimizer state": "#E69F00", "gradients, activations": "#BBBBBB"}


def label(row: dict[str, Any]) -> str:
    """Such as ``LLaMA-7B, Fira rank 64, 2,048 tokens, ordinary step``."""
    rank = f" rank {row['rank']}" if row["rank"] and row["method"] != "apollo_mini" else ""
    weights = ", int8 weights" if row["weights"] == "int8" else ""
    step = ", ordinary step" if row["step"] == "ordinary" else ""
    model = row["model"].replace("llama_", "LLaMA-").upper().replace("LLAMA", "LLaMA")
    method = NAMES["method"][row["method"]]
    return f"{model}, {method}{rank}{weights}, {row['tokens_per_step']:,} tokens{step}"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Writes one bar for each row, chip by chip, with the chip's memory as a line across."""
    rcParams["font.size"] = 9
    rows = sorted(rows, key=lambda row: (row["memory_gib"], row["topology"], row["peak_gib"]))
    chips = [list(group) for _, group in itertools.groupby(rows, key=lambda row: row["topology"])]
    figure = Figure(figsize=(8, 0.7 + 0.32 * (len(rows) + len(chips))), dpi=150)
    axes = figure.add_subplot()
    place, ticks = 0.0, []
    for chip in chips:
        name = NAMES["topology"][chip[0]["topology"]]
        axes.text(0.2, place - 0.15, name, weight="bold", va="center")
        memory, begin = chip[0]["memory_gib"], place + 0.5
        for row in chip:
            place += 1
            ticks.append((place, label(row)))
            rest = row["peak_gib"] - row["weights_gib"] - row["state_gib"]
            left = 0.0
            for size, colour in zip(
                (row["weights_gib"], row["state_gib"], rest), PARTS.values(), strict=True
            ):
                axes.barh(place, size, 0.75, left, color=colour, alpha=1 if row["fits"] else 0.4)
                left += size
            verdict = "" if row["fits"] else "  does not fit"
            # Not across the line of the chip's memory.
            at = max(left, memory) if memory - left < 8 else left
            axes.text(at + 0.6, place, f"{row['peak_gib']:.1f}{verdict}", va="center")
        axes.vlines(memory, begin, place + 0.5, color="#D55E00", linewidth=2)
        place += 1.2
    axes.set_yticks(*zip(*ticks, strict=True))
    axes.set_ylim(place - 0.4, -0.7)
    axes.set_xlim(0, 1.18 * max(max(row["peak_gib"], row["memory_gib"]) for row in rows))
    axes.set_xlabel("GiB, as the chip's own compiler counts")
    axes.spines[["top", "right"]].set_visible(False)
    handles = [Patch(color=colour, label=name) for name, colour in PARTS.items()]
    handles.append(Patch(color="#D55E00", label="the chip's memory"))
    axes.legend(handles=handles, loc="upper right", frameon=False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor="white")


if __name__ == "__main__":
    draw(json.loads(RESULTS.read_text())["rows"], PICTURE)

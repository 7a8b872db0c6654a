"""Draws how many directions a gradient has, and how many of them a method moves.

python docs/figures/spectra.py     # docs/results/spectra.json -> docs/images/spectra.png
"""

import json
import statistics
from pathlib import Path
from typing import Any

from matplotlib import rcParams
from matplotlib.figure import Figure

DOCS = Path(__file__).parents[1]
RESULTS, PICTURE = DOCS / "results" / "spectra.json", DOCS / "images" / "spectra.png"
# Colours that people with any kind of colour vision can tell apart (Okabe and Ito).
LINES = {
    ("fira", "gradient"): ("a gradient", "#777777"),
    ("fira", "update"): ("Fira's update", "#0072B2"),
    ("fira_orthogonal", "update"): ("orthogonalized Fira's", "#D55E00"),
}


def draw(rows: list[dict[str, Any]]) -> None:
    """One panel a size: mean singular values over the largest, at the end of the run."""
    rcParams["font.size"] = 9
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    figure = Figure(figsize=(8.4, 3), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for axes, size in zip(panels, sizes, strict=True):
        here = [row for row in rows if row["size"] == size]
        last = max(row["step"] for row in here)
        for (method, of), (label, colour) in LINES.items():
            found = [
                row["spectrum"]
                for row in here
                if (row["method"], row["of"], row["step"]) == (method, of, last)
            ]
            mean = [statistics.fmean(x) for x in zip(*found, strict=True)]
            axes.semilogy(range(1, len(mean) + 1), mean, color=colour, label=label)
        axes.set_title(f"LLaMA {size}, after {last} steps")
        axes.set_xlabel("singular value, the largest first")
        axes.set_ylim(bottom=1e-3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("its size beside the largest")
    panels[0].legend(frameon=False, loc="lower left")
    figure.savefig(PICTURE, facecolor="white")


if __name__ == "__main__":
    draw(json.loads(RESULTS.read_text())["rows"])

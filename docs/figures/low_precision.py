"""Draws training losses with bfloat16 weights, rounded to nearest or at random, beside float32.

python docs/figures/low_precision.py     # docs/results/continued.json -> docs/images/rounding.png
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rcParams
from matplotlib.figure import Figure

DOCS = Path(__file__).parents[1]
RESULTS, PICTURE = DOCS / "results" / "continued.json", DOCS / "images" / "rounding.png"
# Colours that people with any kind of colour vision can tell apart (Okabe and Ito).
KINDS = {
    "bfloat16 weights": ("rounded to nearest", "#D55E00"),
    "bfloat16 weights, stochastic": ("rounded at random", "#0072B2"),
}


def curves(trained: list[dict[str, Any]], name: str) -> dict[int, np.ndarray]:
    """Training losses by seed."""
    return {row["seed"]: np.array(row["train_losses"]) for row in trained if row["name"] == name}


def draw(trained: list[dict[str, Any]], run_length: int, path: Path) -> None:
    """Writes one panel an optimizer: how much higher the loss is than in float32, seed by seed."""
    rcParams["font.size"] = 9
    figure = Figure(figsize=(8, 3), dpi=150)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, optimizer in zip(panels, ("Fira", "AdamW"), strict=True):
        exact = curves(trained, optimizer)
        axes.axhline(0, color="#BBBBBB", linewidth=1)
        for suffix, (label, colour) in KINDS.items():
            rounded = curves(trained, f"{optimizer}, {suffix}")
            excess = np.array(
                [rounded[seed] - exact[seed] for seed in sorted(rounded) if seed in exact]
            )
            steps = run_length * (np.arange(excess.shape[1]) + 1) / excess.shape[1]
            mean, error = excess.mean(0), excess.std(0, ddof=1) / len(excess) ** 0.5
            axes.plot(steps, mean, color=colour, label=label)
            axes.fill_between(
                steps, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0
            )
        axes.set_title(f"{optimizer}, {len(excess)} seeds")
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("training loss above float32's")
    panels[0].legend(frameon=False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor="white")


if __name__ == "__main__":
    results = json.loads(RESULTS.read_text())
    draw(results["trained"], results["settings"]["steps"], PICTURE)

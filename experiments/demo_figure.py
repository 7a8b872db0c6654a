"""The picture of a demo: what each optimizer learns, and the memory it takes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette, distinguishable with any colour vision; the markers serve greyscale.
STYLE = {
    "AdamW": ("#555555", "s"),
    "LoRA": ("#555555", "s"),
    "GaLore": ("#E69F00", "^"),
    "Fira": ("#0072B2", "o"),
    "Fira, tracked": ("#009E73", "D"),
    "Fira, orthogonalized": ("#D55E00", "v"),
}


def draw(
    results: dict[str, dict[str, Any]],
    path: Path,
    *,
    loss: str = "validation loss (nats per token)",
    subject: str = "Same model, same text, same order",
    said: Callable[[dict[str, Any]], str] = lambda result: f"perplexity {result['perplexity']:.1f}",
) -> None:
    """Writes validation curves and optimizer-state bars.

    Args:
        results: By the optimizer's title, its ``curve`` of (step, loss) and its
            ``optimizer_state_bytes``.
        path: The PNG's place.
        loss: What the curves show.
        subject: What all of them share.
        said: What is written beside a bar, of a result.
    """
    figure = Figure(figsize=(9.6, 3.9), dpi=160, layout="constrained")
    curves, bars = figure.subplots(1, 2, width_ratios=(1.75, 1))
    _draw_curves(curves, results)
    curves.set_ylabel(loss)
    curves.set_title(subject, loc="left", fontsize=11)
    _draw_bars(bars, results, said)
    figure.savefig(path, facecolor="white")


def _draw_curves(axes: Axes, results: dict[str, dict[str, Any]]) -> None:
    for title, result in results.items():
        colour, marker = STYLE[title]
        steps, losses = zip(*result["curve"], strict=True)
        axes.plot(steps, losses, color=colour, marker=marker, markersize=4.5, lw=1.8, label=title)
    axes.set_xlabel("step")
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_bars(
    axes: Axes, results: dict[str, dict[str, Any]], said: Callable[[dict[str, Any]], str]
) -> None:
    titles = list(results)
    sizes = [results[title]["optimizer_state_bytes"] / 1e6 for title in titles]
    bars = axes.barh(titles, sizes, color=[STYLE[title][0] for title in titles], height=0.6)
    labels = [f"{size:.2f} MB\n{said(results[t])}" for t, size in zip(titles, sizes, strict=True)]
    axes.bar_label(bars, labels, padding=4, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.5 * max(sizes))
    axes.set_xticks([])
    axes.set_title("Optimizer state", loc="left", fontsize=11)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "bottom"]].set_visible(False)

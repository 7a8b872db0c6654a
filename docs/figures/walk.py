"""Draws docs/images/walk.svg: a gradient's walk through its subspace, arrays drawn to scale.

python docs/figures/walk.py
"""

from pathlib import Path

from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

FULL, SMALL, VECTOR = "#B9CBD9", "#0072B2", "#E69F00"
INK, GREY = "#222222", "#666666"
A, B, R = 1.6, 2.2, 0.32  # sides of a gradient and the rank, in inches
MIDDLE = 1.5  # height of the main lane
WIDTH, HEIGHT = 12.9, 2.95

rcParams["svg.hashsalt"] = "walk"  # the same file from every run
rcParams["mathtext.fontset"] = "cm"


def array(axes: Axes, centre: tuple[float, float], size: tuple[float, float], colour: str) -> None:
    """A block drawn to scale."""
    corner = (centre[0] - size[0] / 2, centre[1] - size[1] / 2)
    axes.add_patch(Rectangle(corner, *size, fc=colour, ec=INK, lw=0.8))


def label(axes: Axes, x: float, y: float, text: str, size: float = 10, colour: str = INK) -> None:
    """Centred text."""
    axes.text(x, y, text, ha="center", va="center", fontsize=size, color=colour)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """From one place to another."""
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1.2})


def code(axes: Axes, x: float, y: float, text: str) -> None:
    """The name of the transformation that makes a step."""
    axes.text(x, y, text, ha="center", va="bottom", fontsize=8.5, family="monospace", color=INK)


def draw(path: Path) -> None:
    """Writes the picture."""
    figure = Figure(figsize=(WIDTH, HEIGHT))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    axes.set_axis_off()

    node = FancyBboxPatch((3.72, 0.1), 5.45, 2.75, boxstyle="round,pad=0,rounding_size=0.12")
    node.set(facecolor="#F6F6F6", edgecolor="#BBBBBB", linewidth=0.8)
    axes.add_patch(node)
    axes.text(3.86, 2.6, "the Subspace node: carries $G$ along as it came, and these",
              fontsize=9, color=GREY)  # fmt: skip

    array(axes, (1.25, MIDDLE), (B, A), FULL)
    label(axes, 1.25, MIDDLE, "$G$", 15)
    label(axes, 1.25, 0.5, r"$a \times b$", 10, GREY)

    arrow(axes, (2.42, MIDDLE), (3.66, MIDDLE))
    code(axes, 3.04, MIDDLE + 0.1, "low_rank_\nproject")

    array(axes, (4.1, MIDDLE), (R, A), SMALL)
    label(axes, 4.1, MIDDLE, "$P$", 12, "white")
    label(axes, 4.1, 0.5, r"$a \times r$", 10, GREY)

    array(axes, (5.5, MIDDLE), (B, R), SMALL)
    label(axes, 5.5, MIDDLE, "$R = P^T G$", 12, "white")
    label(axes, 5.5, MIDDLE - 0.33, r"$r \times b$", 10, GREY)

    arrow(axes, (6.62, MIDDLE), (6.86, MIDDLE))
    code(axes, 6.74, MIDDLE + 0.24, "scale_by_adam_in_subspace")

    array(axes, (8.0, MIDDLE), (B, R), SMALL)
    label(axes, 8.0, MIDDLE, "$N$", 12, "white")
    arrow(axes, (8.0, MIDDLE - R / 2), (8.0, 0.78))
    axes.text(6.8, 0.69, "fira_residual_scale,\nnorm_growth_limit", ha="right", va="center",
              fontsize=8.5, family="monospace")  # fmt: skip
    array(axes, (8.0, 0.69), (B, 0.09), VECTOR)
    label(axes, 8.0, 0.42, r"$s = \phi / \ell$ :  $1 \times b$", 10.5)

    arrow(axes, (9.22, MIDDLE), (10.42, MIDDLE))
    code(axes, 9.82, MIDDLE + 0.1, "project_\nback")
    array(axes, (11.62, MIDDLE), (B, A), FULL)
    label(axes, 11.62, MIDDLE, "$U$", 15)
    label(axes, 11.62, 0.5, r"$a \times b$", 10, GREY)

    figure.savefig(path, facecolor="white", metadata={"Date": None})


if __name__ == "__main__":
    draw(Path(__file__).parents[1] / "images" / "walk.svg")

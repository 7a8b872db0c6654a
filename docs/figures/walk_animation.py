"""Draws docs/images/walk.gif: one gradient's walk through Fira, with the numbers of a real step.

python docs/figures/walk_animation.py
"""

import io
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

import fira_jax

DOCS = Path(__file__).parents[1]
sys.path.insert(0, str(DOCS / "figures"))

from gallery import RANK, A, B, gradients  # noqa: E402

INK = "#222222"
SIZE = 7.2, 5.2  # inches: at the width of a phone letters of 15 points are ten pixels tall
UNIT = 0.057  # inches for one entry of a matrix
FADE, HOLD = 5, 1700  # frames of a fade, and milliseconds to read a caption
STAGES = {
    "grad": "A weight matrix's gradient $G$:\nlarge, and Adam would keep two copies of it",
    "basis": "A few directions $P$ hold most of it;\nthey are found anew every 200 steps",
    "raw": "Project: $R = P^T G$ is what Adam gets to see,\nand all it keeps state for",
    "core": "Adam in the subspace turns $R$ into $N$,\neach column's length by a factor $\\phi_j$",
    "rest": "What $P$ misses has no state; its columns\nare scaled by that $\\phi_j$, and limited",
    "update": "Both parts together:\na full-size update $U$",
}
PLACES = {  # left edge and middle, inches
    "grad": (0.26, 1.0), "basis": (0.75, 3.2), "raw": (2.57, 3.2), "core": (4.89, 3.2),
    "rest": (2.57, 1.0), "update": (4.89, 1.0),
}  # fmt: skip
LABELS = {"grad": "$G$", "basis": "$P$", "raw": "$R$", "core": "$N$",
          "rest": r"$s \circ (G - \kappa P R)$", "update": "$U$"}  # fmt: skip
ARROWS = {
    "basis": [((0.92, 1.75), (0.92, 2.48))], "raw": [((1.15, 3.2), (2.52, 3.2))],
    "core": [((4.62, 3.2), (4.88, 3.2))], "rest": [((2.3, 1.0), (2.56, 1.0))],
    "update": [((4.62, 1.0), (4.88, 1.0)), ((6.5, 2.98), (6.5, 1.75))],
}  # fmt: skip


def parts() -> dict[str, np.ndarray]:
    """Every array of the tenth step of Fira on the gallery's gradients."""
    low_rank = fira_jax.LowRank(rank=RANK, update_proj_gap=200)
    pieces = optax.chain(
        fira_jax.low_rank_project(low_rank),
        fira_jax.scale_by_adam_in_subspace(low_rank),
        fira_jax.fira_residual_scale(),
        fira_jax.norm_growth_limit(low_rank),
    )
    grads = gradients()[0]
    state = pieces.init({"w": jnp.zeros((A, B))})
    for grad in grads:
        nodes, state = pieces.update({"w": jnp.asarray(grad)}, state)
    node = nodes["w"]
    rest = node.residual_scale * (node.matrix - node.residual_leak * node.basis @ node.raw)
    update = fira_jax.project_back().update(nodes, optax.EmptyState())[0]["w"]
    shown = {"grad": node.matrix, "basis": node.basis, "raw": node.raw, "core": node.core}
    return {k: np.asarray(v) for k, v in {**shown, "rest": rest, "update": update}.items()}


def block(axes: Axes, name: str, values: np.ndarray, alpha: float) -> None:
    """One array to scale, its entries as colours."""
    left, middle = PLACES[name]
    height, width = (side * UNIT for side in values.shape)
    extent = (left, left + width, middle - height / 2, middle + height / 2)
    limit = np.percentile(np.abs(values), 98)
    axes.imshow(values, cmap="RdBu", vmin=-limit, vmax=limit, extent=extent, alpha=alpha,
                interpolation="nearest", aspect="auto", zorder=2)  # fmt: skip
    corner = (left, middle - height / 2)
    axes.add_patch(Rectangle(corner, width, height, fill=False, ec=INK, lw=0.8, alpha=alpha))
    axes.text(left + width / 2, middle + height / 2 + 0.1, LABELS[name], ha="center", size=15,
              alpha=alpha, color=INK)  # fmt: skip


def frame(values: dict[str, np.ndarray], stage: int, alpha: float) -> Image.Image:
    """The picture with all stages before ``stage`` whole and this one ``alpha`` there."""
    figure = Figure(figsize=SIZE, dpi=120)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for i, name in enumerate(list(STAGES)[: stage + 1]):
        strength = alpha if i == stage else 1.0
        block(axes, name, values[name], strength)
        for start, end in ARROWS.get(name, []):
            style = {"arrowstyle": "-|>", "color": INK, "lw": 1.3, "alpha": strength}
            axes.annotate("", end, start, arrowprops=style)
    caption = list(STAGES.values())[stage]
    axes.text(SIZE[0] / 2, 4.72, caption, ha="center", va="center", size=15, color=INK)
    axes.set(xlim=(0, SIZE[0]), ylim=(0, SIZE[1]))
    data = io.BytesIO()
    figure.savefig(data, facecolor="white")
    return Image.open(data).convert("RGB")


def draw(path: Path) -> None:
    """Writes the animation. It begins with all of it, which is shown where nothing moves."""
    rcParams["mathtext.fontset"] = "cm"
    values = parts()
    frames, times = [frame(values, len(STAGES) - 1, 1.0)], [HOLD]
    for stage in range(len(STAGES)):
        for i in range(FADE if stage == 0 else 1, FADE + 1):
            frames.append(frame(values, stage, i / FADE))
            times.append(60 if i < FADE else HOLD)
    times[-1] = 2 * HOLD
    palette = frames[0].quantize(128)
    frames = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in frames]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=times, loop=0)


if __name__ == "__main__":
    draw(DOCS / "images" / "walk.gif")

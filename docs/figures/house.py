"""Draws the library's rooms and which of them import which, from the imports themselves.

``python docs/figures/house.py`` writes ``docs/images/house.svg``. The rooms stand in the order in
which they may lean on each other: every arrow goes down. ``tests/project/test_house.py`` fails
where one does not, or where the picture is not that of the present imports.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "fira_jax"
PICTURE = ROOT / "docs" / "images" / "house.svg"

# From the top: what a room may import stands below it. Files outside of a wing are the ground
# floor, but for those that need a wing.
ROOMS = {
    "cost": "What will it cost?",
    "layer_by_layer": "How is the update put inside the backward pass?",
    "methods": "Which pieces does a published method chain?",
    "precision": "How are state and weights kept in fewer bits?",
    "transforms": "What does each piece do to a gradient on its walk?",
    "sharding": "Where does the state lie on many devices?",
    "whose": "Which array of a state is whose?",
    "spec": "What does low rank mean for this model?",
    "refresh": "When is a subspace replaced?",
    "basis": "How is a subspace found?",
    "ground": "What is a matrix, a node, a tree, a norm?",
}
FILES = {
    "state_owners": "whose",
    "ranks": "whose",
    "advice": "spec",
    "low_rank": "spec",
    "arguments": "spec",
    "resize": "whose",
    "torch_state": "methods",
}


def room_of(module: str) -> str | None:
    """The room of a module such as ``fira_jax.basis.svd``; None for the front door."""
    parts = module.split(".")[1:]
    if not parts:
        return None
    return parts[0] if parts[0] in ROOMS else FILES.get(parts[0], "ground")


def modules() -> dict[str, ast.Module]:
    """Every module of the package, parsed."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = ast.parse(path.read_text())
    return found


def imports() -> set[tuple[str, str]]:
    """Pairs of modules of which the first imports from the second."""
    known = modules()
    pairs = set()
    for module, tree in known.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                if node.module.split(".")[0] != PACKAGE:
                    continue
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    pairs.add((module, inner if inner in known else node.module))
    return pairs


def arrows() -> list[tuple[str, str]]:
    """Pairs of rooms of which the first imports from the second."""
    pairs = {(room_of(a), room_of(b)) for a, b in imports()}
    return sorted((a, b) for a, b in pairs if a and b and a != b)


def draw(path: Path) -> None:
    """Writes the picture; which arrows it shows stands in its description."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    mpl.rcParams.update({"svg.hashsalt": PACKAGE, "svg.fonttype": "none"})
    import matplotlib.pyplot as plt  # noqa: PLC0415
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch  # noqa: PLC0415

    files: dict[str, list[str]] = {room: [] for room in ROOMS}
    for module in modules():
        room, name = room_of(module), module.split(".")[-1]
        if room and name not in ROOMS:
            files[room].append(name)

    figure, axes = plt.subplots(figsize=(11, 13))
    axes.set(xlim=(-3.2, 10), ylim=(-0.2, len(ROOMS)))
    axes.axis("off")
    height = {room: len(ROOMS) - 1 - i for i, room in enumerate(ROOMS)}
    for room, question in ROOMS.items():
        y = height[room]
        axes.add_patch(
            FancyBboxPatch(
                (0, y + 0.1), 9.9, 0.72, boxstyle="round,pad=0.02", fc="#eef3f8", ec="#5b7a99"
            )
        )
        title = {"whose": "state_owners, ranks", "spec": "low_rank"}.get(room, room)
        axes.text(0.15, y + 0.6, title, weight="bold", size=12)
        axes.text(9.75, y + 0.6, question, ha="right", size=10, style="italic", color="#335")
        axes.text(0.15, y + 0.2, _lines(files[room]), size=7.5, color="#444", va="bottom")
    for above, below in arrows():
        start, end = height[above] + 0.4, height[below] + 0.5
        axes.add_patch(
            FancyArrowPatch(
                (0, start),
                (0, end),
                connectionstyle=f"arc3,rad={0.25 + 0.02 * abs(start - end):.3f}",
                arrowstyle="-|>",
                mutation_scale=9,
                color="#b35c00" if start - end > 0 else "red",
                alpha=0.55,
                lw=0.9,
            )
        )
    figure.savefig(
        path,
        bbox_inches="tight",
        metadata={"Date": None, "Description": json.dumps(arrows())},
    )
    plt.close(figure)


def _lines(names: list[str], width: int = 125) -> str:
    """Names in at most two lines."""
    text = ", ".join(names)
    if len(text) <= width:
        return text
    cut = text.rfind(", ", 0, max(width, len(text) // 2 + 10)) + 1
    return text[:cut] + "\n" + text[cut:].strip()


if __name__ == "__main__":
    draw(PICTURE)

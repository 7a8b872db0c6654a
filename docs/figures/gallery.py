"""Draws what part of one gradient each method moves, and writes the gallery.

python docs/figures/gallery.py [NAME ...]     # all methods, or only these
"""

import json
import math
import os
import re
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import colormaps
from matplotlib.image import imsave

import fira_jax

DOCS = Path(__file__).parents[1]
sys.path.insert(0, str(DOCS / "figures"))

from gallery_methods import METHODS, Method  # noqa: E402

A, B, RANK, STEPS = 24, 36, 6, 10
LARGE, LARGE_RANK = (4096, 11008), 128  # LLaMA-7B's feed-forward matrices
PAGE, PICTURES = DOCS / "guides" / "gallery.md", DOCS / "images" / "gallery"
RESULTS = DOCS / "results" / "gallery.json"
BEGIN, END = "<!-- gallery:begin -->\n", "<!-- gallery:end -->\n"


def gradients() -> tuple[np.ndarray, np.ndarray]:
    """Noisy gradients ``[STEPS, A, B]`` of a decaying spectrum, and their directions in order."""
    rng = np.random.default_rng(0)
    left = np.linalg.qr(rng.standard_normal((A, A)))[0]
    right = np.linalg.qr(rng.standard_normal((B, A)))[0]
    mean = left * 0.8 ** np.arange(A) @ right.T
    noise = 0.002 * rng.standard_normal((STEPS, A, B))
    return (mean + noise).astype(np.float32), left


def last_update(method: Method) -> np.ndarray:
    """What the method adds to the matrix at the last step."""
    tx, (grads, _) = method.transformation(RANK), gradients()
    params = {"w": jnp.zeros((A, B))}

    @jax.jit
    def run(grads: jax.Array) -> jax.Array:
        def step(state: Any, grad: jax.Array) -> tuple[Any, jax.Array]:
            updates, state = tx.update({"w": grad}, state, params)
            return state, updates["w"]

        return jax.lax.scan(step, tx.init(params), grads)[1][-1]

    return np.asarray(run(jnp.asarray(grads)))


def draw(path: Path, by_direction: np.ndarray) -> None:
    """Writes how far each of the gradient's directions (rows, the strongest on top) moves."""
    size = np.abs(by_direction) / np.abs(by_direction).max()
    pixels = np.repeat(np.repeat(colormaps["Blues"](size**0.7), 5, axis=0), 5, axis=1)
    pixels[5 * RANK] = (0.84, 0.37, 0, 1)  # below this line a subspace of rank r does not reach
    imsave(path, pixels)


def measure(method: Method) -> dict[str, Any]:
    """The numbers of one row; draws its picture."""
    directions = gradients()[1].T
    moved = directions @ last_update(method)
    draw(PICTURES / f"{method.name}.png", moved)
    large = {"w": jax.ShapeDtypeStruct(LARGE, jnp.float32)}
    table = fira_jax.describe(method.transformation(LARGE_RANK), large)
    return {
        "state_bytes": table.rows[0].state_bytes,
        "leading_share": float(np.sum(moved[:RANK] ** 2) / np.sum(moved**2)),
    }


def element_count(state: str, a: int, b: int, r: int) -> int | None:
    """What a formula like ``ar + 2br + 1`` comes to; None if there are words in it."""
    if not re.fullmatch(r"[abr0-9+ ]+", state):
        return None
    sizes = {"a": a, "b": b, "r": r}
    return sum(
        math.prod(sizes.get(factor) or int(factor) for factor in re.findall(r"[abr]|[0-9]+", term))
        for term in state.split("+")
    )


def card(title: str, picture: str, lines: list[str]) -> str:
    """One method: its picture and what is to be said beside it."""
    text = "\n\n".join(lines)
    return (
        f":::{{container}} card\n![{title}](../images/gallery/{picture}.png)\n\n"
        f"**{title}**\n\n{text}\n:::\n"
    )


def cards(results: dict[str, dict[str, Any]]) -> str:
    """The gallery in Markdown: the gradient itself, then every method."""
    shares = {name: f"{result['leading_share']:.0%}" for name, result in results.items()}
    shown = [
        card(
            "The gradient itself",
            "gradient",
            [f"{shares['gradient']} within the {RANK} leading directions"],
        )
    ]
    for method in METHODS:
        state = method.state
        if element_count(state, 1, 1, 1) is not None:
            state = f"${state}$"
        ours = method.source.endswith(".md")
        source = method.source if ours else f"https://arxiv.org/abs/{method.source}"
        megabytes = f"{results[method.name]['state_bytes'] / 1e6:,.1f} MB"
        shown.append(
            card(
                method.title,
                method.name,
                [
                    f"[`{method.name}`]({source}): {method.moves}",
                    f"State {state}, that is {megabytes} for {LARGE[0]} × {LARGE[1]} at rank "
                    f"{LARGE_RANK}; {shares[method.name]} within the leading directions",
                    f"```{{evidence}} {method.name}\n```",
                ],
            )
        )
    return "::::{container} gallery\n" + "\n".join(shown) + "::::\n"


def with_cards(page: str, results: dict[str, dict[str, Any]]) -> str:
    """``page`` with what stands between its marks replaced."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{cards(results)}\n{END}{after}"


def write(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def main(names: list[str]) -> None:
    """Measures and draws the methods, then writes the page."""
    PICTURES.mkdir(exist_ok=True)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if unknown := set(names) - {method.name for method in METHODS}:
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}")
    grads, left = gradients()
    turned = left.T @ grads[-1]
    draw(PICTURES / "gradient.png", turned)
    share = float(np.sum(turned[:RANK] ** 2) / np.sum(turned**2))
    results["gradient"] = {"leading_share": share}
    for method in METHODS:
        if not names or method.name in names:
            print(method.name, flush=True)
            results[method.name] = measure(method)
            write(RESULTS, json.dumps(results, indent=2) + "\n")
    write(PAGE, with_cards(PAGE.read_text(), results))


if __name__ == "__main__":
    main(sys.argv[1:])

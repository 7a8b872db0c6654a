"""Measures every parity gap and writes ``docs/results/parity.json``, the table of the docs.

    python -m tests.peers.report

One row for each kind of layer, one column for each package and dtype, each entry the largest gap
over α in {1, 0.25} and, in float32 and bfloat16, over bias correction on and off.
"""

import itertools
import json
import os
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from tests.peers.parity import (
    FEW_LAYERS,
    TOLERANCE,
    TOLERANCE_CLOSED_LOOP,
    TOLERANCE_WEIGHT_DECAY,
    closed_loop,
    compare,
    compare_optax,
)
from tests.peers.problems import LAYERS

RESULT = Path(__file__).parents[2] / "docs" / "results" / "parity.json"
ALPHAS = (1.0, 0.25)
NAMES = {"fira": f"fira {version('fira')}", "galore": f"galore-torch {version('galore-torch')}"}
OPTAX = f"optax.contrib.galore {version('optax')}"


def largest(results: Iterable[dict[str, float]]) -> dict[str, float]:
    """Entry by entry, over dictionaries that need not have the same entries."""
    found: dict[str, float] = {}
    for name, gap in itertools.chain.from_iterable(result.items() for result in results):
        found[name] = max(found.get(name, 0.0), gap)
    return found


def measure() -> dict[str, dict[str, float]]:
    """``{column: {row: gap}}``."""
    columns = {}
    for package, dtype in itertools.product(NAMES, TOLERANCE):
        layers = FEW_LAYERS if dtype == "bfloat16" else tuple(LAYERS)
        results = [compare(package, alpha, dtype=dtype, layers=layers).gaps for alpha in ALPHAS]
        column = {"promised": TOLERANCE[dtype]}
        if dtype == "float32":
            results += [
                compare(package, alpha, correct_bias=False, layers=FEW_LAYERS).gaps
                for alpha in ALPHAS
            ]
            decayed = [compare(package, alpha, 0.1).gaps for alpha in ALPHAS]
            column["weight decay 0.1, any layer"] = max(largest(decayed).values())
            loops = [closed_loop(package, alpha) for alpha in ALPHAS]
            column["small network, closed loop"] = max(largest(loops).values())
        columns[f"{NAMES[package]}, {dtype}"] = column | largest(results)
    columns[f"{OPTAX}, float32"] = {"promised": TOLERANCE["float32"]} | largest(
        compare_optax(alpha, decay) for alpha in ALPHAS for decay in (0.0, 0.1)
    )
    for name, tolerance in (
        ("weight decay 0.1, any layer", TOLERANCE_WEIGHT_DECAY),
        ("small network, closed loop", TOLERANCE_CLOSED_LOOP),
    ):
        assert all(column.get(name, 0.0) <= tolerance for column in columns.values())
    return columns


def main() -> None:
    columns = measure()
    rows = []
    for name in ("promised", *LAYERS, "weight decay 0.1, any layer", "small network, closed loop"):
        row: dict[str, str | float] = {"layer": name}
        if name in LAYERS:
            row["shape"] = " × ".join(map(str, LAYERS[name].shape))
        for column, gaps in columns.items():
            if name in gaps:
                row[column] = float(f"{gaps[name]:.1e}")
        rows.append(row)
    partial = RESULT.with_suffix(".tmp")
    partial.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    os.replace(partial, RESULT)
    print(RESULT.read_text())


if __name__ == "__main__":
    main()

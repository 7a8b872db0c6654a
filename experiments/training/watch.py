"""What a run that watches its optimizer logs, and the table of it."""

from __future__ import annotations

from typing import Any

import jax
import optax
from rich.table import Table

import fira_jax


def watched(opt_state: optax.OptState) -> dict[str, jax.Array]:
    """Scalars for the log: a summary, and the means of each projected parameter.

    Empty unless something is measured.
    """

    def measured(x: Any) -> bool:
        return isinstance(x, fira_jax.transforms.MeasuredState)

    if not any(map(measured, jax.tree.leaves(opt_state, is_leaf=measured))):
        return {}
    metrics = fira_jax.metrics(opt_state)
    values = {f"watch/{k}": v for k, v in metrics.summary._asdict().items()}
    for path, measures in metrics.parameters.items():
        values |= {f"watch/{k}/{path}": v.mean() for k, v in measures._asdict().items()}
    return values


def watch_table(record: dict[str, float]) -> Table:
    """The newest of these numbers as a table: a row for each parameter, and the summary."""
    names = fira_jax.transforms.Measures._fields
    table = Table("parameter", *(name.replace("_", " ") for name in names))
    paths = [key.split("/", 2)[2] for key in record if key.startswith(f"watch/{names[0]}/")]
    for path in paths:
        table.add_row(path, *(f"{record[f'watch/{name}/{path}']:.3g}" for name in names))
    table.add_section()
    table.add_row("all", *(f"{record[f'watch/{name}']:.3g}" for name in names))
    return table

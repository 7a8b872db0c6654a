"""Rows as a table in the terminal."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def print_rows(rows: Sequence[dict[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Prints what rows hold.

    Args:
      rows: all with the same keys.
      columns: some of them, by default all.
    """
    columns = columns or list(rows[0])
    table = Table(*(name.replace("_", " ") for name in columns))
    for row in rows:
        table.add_row(*(_cell(row[name]) for name in columns))
    Console(width=180).print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)

"""What stands in ``docs/results/*.json`` as headings and cells, for the site and the README."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"

HEADINGS = {"lr": "learning rate", "name": "", "topology": "chip", "oversample": "p"}
NAMES = {
    "topology": {
        "rtx4080": "RTX 4080, 16 GB",
        "rtx4090": "RTX 4090, 24 GB",
        "h100": "H100, 80 GB",
        "v5e:1x1": "TPU v5e, 16 GB",
        "v6e:1x1": "TPU v6e, 32 GB",
    },
    "method": {"fira": "Fira", "galore": "GaLore", "apollo_mini": "APOLLO-Mini", "adamw": "AdamW"},
}
"""How people call what a file names briefly."""

Table = tuple[list[str], list[list[str]]]


def at(path: Path, keys: str) -> Any:
    """What stands at dotted ``keys`` of a JSON file; None if the file or the place is missing.

    A script that measures for long may have written only its first part.
    """
    value: Any = json.loads(path.read_text()) if path.exists() else None
    for key in filter(None, keys.split(".")):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def rows_of(value: Any) -> list[dict[str, Any]]:
    """Records for a table: a list of records, or a mapping from names to records or to values."""
    if isinstance(value, dict):
        value = [
            {"name": name, **(entry if isinstance(entry, dict) else {"value": entry})}
            for name, entry in value.items()
        ]
    return [row for row in value if isinstance(row, dict)]


def selected(rows: list[dict[str, Any]], where: list[str], sort: list[str]) -> list[dict[str, Any]]:
    """The rows whose values are, or read, as ``where`` says, ordered by the columns in ``sort``.

    ``a|b`` is either of two values; a minus before a column has its largest value first.
    """
    for column, _, values in (condition.partition("=") for condition in where):
        wanted = set(values.split("|"))
        rows = [
            row for row in rows if wanted & {str(row.get(column)), cell(column, row.get(column))}
        ]
    for column in reversed(sort):
        key = column.removeprefix("-")
        rows = sorted(
            rows,
            key=lambda row: (row.get(key) is not None, row.get(key)),
            reverse=column.startswith("-"),
        )
    return rows


def table_of(rows: list[dict[str, Any]], columns: list[str] | None = None) -> Table:
    """Headings and cells; without ``columns``, every key whose values fit into a cell."""
    if columns is None:
        keys = dict.fromkeys(key for row in rows for key in row)
        columns = [key for key in keys if all(fits(row.get(key)) for row in rows)]
    headings = [heading(column) for column in columns]
    return headings, [[cell(column, row.get(column)) for column in columns] for row in rows]


def told_once(headings: list[str], body: list[list[str]]) -> tuple[Table, list[str]]:
    """The table without columns that say the same in every row, and what those say."""
    columns = range(len(headings))
    same = [len(body) > 2 and len({line[i] for line in body}) == 1 for i in columns]
    told = [f"{headings[i]} {body[0][i]}" for i in columns if same[i]]

    def rest(line: list[str]) -> list[str]:
        return [text for text, is_same in zip(line, same, strict=True) if not is_same]

    return (rest(headings), [rest(line) for line in body]), told


def fits(value: Any) -> bool:
    """Whether a value has a place in a table: a number, a text, or a median with its quartiles."""
    return not isinstance(value, list) and (not isinstance(value, dict) or "median" in value)


def heading(column: str) -> str:
    """``optimizer_state_bytes`` -> ``optimizer state``; units of time stay."""
    words = column.removesuffix("_bytes").replace("_", " ")
    words = words.removesuffix(" gib") + " (GiB)" if words.endswith(" gib") else words
    return HEADINGS.get(words, words)


def cell(column: str, value: Any) -> str:
    """A value as people read it: sizes in MB (10^6 bytes), four significant digits."""
    if value is None:
        return "–"
    if isinstance(value, dict):
        median, low, high = (value[key] for key in ("median", "quartile_low", "quartile_high"))
        return f"{median:.2f} ({low:.2f} to {high:.2f})"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if column.endswith("_bytes"):
        return f"{value / 1e6:.2f} MB"
    if column in NAMES:
        return NAMES[column].get(value, str(value))
    if isinstance(value, int) or (isinstance(value, float) and abs(value) >= 10_000):
        return f"{value:,.0f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)

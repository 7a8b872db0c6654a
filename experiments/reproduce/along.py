"""Measurements along a run: each made once, the file written after each."""

import itertools
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from experiments.files import console, write_atomically
from experiments.reproduce.settings import settings

Rows = list[dict[str, Any]]


def fill(output: Path, keys: Iterable[dict[str, Any]], measure: Callable[..., Rows]) -> None:
    """Calls ``measure(**key)`` for every key that no row of the file has yet.

    Args:
      output: a JSON file of ``settings`` and ``rows``; rows of other settings are dropped.
      keys: what tells one measurement from another.
      measure: gives rows, each with the fields of its key.
    """
    rows: Rows = []
    if output.exists():
        before = json.loads(output.read_text())
        rows = before["rows"] if before["settings"] == settings() else []
    for key in keys:
        if any(key.items() <= _plain(row).items() for row in rows):
            continue
        began = time.monotonic()
        rows += measure(**key)
        console.print(f"{key} in {time.monotonic() - began:.0f} s")
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(
            output, json.dumps({"settings": settings(), "rows": rows}, indent=1) + "\n"
        )


def every(**choices: Iterable[Any]) -> Iterable[dict[str, Any]]:
    """All combinations, the last choice changing fastest.

    Example:
        >>> list(every(size=["1m"], seed=[0, 1]))
        [{'size': '1m', 'seed': 0}, {'size': '1m', 'seed': 1}]
    """
    for values in itertools.product(*choices.values()):
        yield dict(zip(choices, values, strict=True))


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not isinstance(value, list | dict)}

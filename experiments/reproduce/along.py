"""Measurements along a run: each made once, the file written after each."""

import itertools
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from experiments.files import console
from experiments.reproduce import results_file
from experiments.reproduce.settings import settings

Rows = list[dict[str, Any]]


def fill(output: Path, keys: Iterable[dict[str, Any]], measure: Callable[..., Rows]) -> None:
    """Calls ``measure(**key)`` for every key that no row of the file has yet.

    Args:
      output: a JSON file of ``settings`` and ``rows``.
      keys: what tells one measurement from another.
      measure: gives rows, each with the fields of its key.

    Raises:
      ValueError: the file holds rows of other settings.
    """
    rows = results_file.read(output, settings())
    for key in keys:
        if any(key.items() <= row.items() for row in rows):
            continue
        began = time.monotonic()
        rows += measure(**key)
        console.print(f"{key} in {time.monotonic() - began:.0f} s")
        results_file.write(output, rows, settings=settings())


def every(**choices: Iterable[Any]) -> Iterable[dict[str, Any]]:
    """All combinations, the last choice changing fastest.

    Example:
        >>> list(every(size=["1m"], seed=[0, 1]))
        [{'size': '1m', 'seed': 0}, {'size': '1m', 'seed': 1}]
    """
    for values in itertools.product(*choices.values()):
        yield dict(zip(choices, values, strict=True))

"""The file that holds every finished run and the tables made of them; written after each run."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.reproduce import ablations, better, claims, pretraining, results_file
from experiments.reproduce.run import Run
from experiments.reproduce.settings import settings
from experiments.reproduce.statistics import searches, summary

PUBLISHED = Path("docs/results/reproduce.json")
TABLES = {
    "pretraining": pretraining.TABLE,
    "better": better.TABLE,
    "claims": claims.TABLE,
    "ablations": ablations.TABLE,
}


def tables_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the rows of pretraining say."""
    tables = {name: summary(rows, table.methods, table.beside) for name, table in TABLES.items()}
    return {"searches": searches(rows), "tables": tables}


@dataclasses.dataclass(frozen=True)
class Book:
    """What a file of rows is about.

    Attributes:
      run: a dataclass; its fields are in every row and tell one run from another.
      settings: what is the same for all runs.
      tables_of: what else the file holds, made of its rows.
    """

    run: Any
    settings: Callable[[], dict[str, Any]]
    tables_of: Callable[[list[dict[str, Any]]], dict[str, Any]]

    def run_of(self, row: dict[str, Any]) -> Any:
        """The run that a row is of; a field that the row is older than has its default."""
        return self.run(**{k: row[k] for k in self.run.__dataclass_fields__ if k in row})


PRETRAINING = Book(Run, settings, tables_of)


class Store:
    """Rows by run, in a JSON file.

    Args:
      path: the file; what it holds is not trained again.
      book: which kind of rows.

    Raises:
      ValueError: it holds runs of other settings.
    """

    def __init__(self, path: Path, book: Book = PRETRAINING):
        self.path, self.book = path, book
        self.rows: dict[Any, dict[str, Any]] = {}
        for row in results_file.read(path, book.settings()):
            run = book.run_of(row)
            self.rows[run] = dataclasses.asdict(run) | row

    def add(self, row: dict[str, Any]) -> None:
        """Adds a row and writes the file."""
        self.rows[self.book.run_of(row)] = row
        self.write()

    def write(self) -> None:
        """Writes the file: settings, tables, and rows."""
        rows = [self.rows[run] for run in sorted(self.rows)]
        settings, tables = self.book.settings(), self.book.tables_of(rows)
        results_file.write(self.path, rows, settings=settings, **tables)

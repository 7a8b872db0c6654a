"""The file that holds every finished run and the tables made of them; written after each run."""

import json
from pathlib import Path
from typing import Any

from experiments.files import write_atomically
from experiments.reproduce import ablations, better, claims, pretraining
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


class Store:
    """Rows by run, in a JSON file.

    Args:
      path: the file; what it holds is not trained again.

    Raises:
      ValueError: it holds runs of other settings.
    """

    def __init__(self, path: Path):
        self.path = path
        self.rows: dict[Run, dict[str, Any]] = {}
        if path.exists():
            before = json.loads(path.read_text())
            if before["settings"] != settings():
                raise ValueError(f"{path} holds runs of other settings: choose another --output")
            self.rows = {run_of(row): row for row in before["rows"]}

    def add(self, row: dict[str, Any]) -> None:
        """Adds a row and writes the file."""
        self.rows[run_of(row)] = row
        self.write()

    def write(self) -> None:
        """Writes the file: settings, tables, and a row a line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = [self.rows[run] for run in sorted(self.rows)]
        tables = {
            name: summary(rows, table.methods, table.beside) for name, table in TABLES.items()
        }
        parts = [
            f'"settings": {json.dumps(settings(), indent=1)}',
            f'"searches": {json.dumps(searches(rows), indent=1)}',
            f'"tables": {json.dumps(tables, indent=1)}',
            '"rows": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]",
        ]
        write_atomically(self.path, "{" + ",\n".join(parts) + "}\n")


def run_of(row: dict[str, Any]) -> Run:
    """The run that a row is of."""
    return Run(*(row[field] for field in Run.__dataclass_fields__))

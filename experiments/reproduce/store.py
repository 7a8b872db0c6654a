"""The file that holds every finished run; written after each."""

import json
from pathlib import Path
from typing import Any

from experiments.files import write_atomically
from experiments.reproduce.run import Run
from experiments.reproduce.settings import settings

PUBLISHED = Path("docs/results/reproduce.json")


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
            self.rows = {_run(row): row for row in before["rows"]}

    def add(self, row: dict[str, Any]) -> None:
        """Adds a row and writes the file."""
        self.rows[_run(row)] = row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = ",\n".join(json.dumps(self.rows[run]) for run in sorted(self.rows))
        parts = f'{{"settings": {json.dumps(settings())},\n"rows": [\n{rows}\n]}}\n'
        write_atomically(self.path, parts)


def _run(row: dict[str, Any]) -> Run:
    return Run(*(row[field] for field in Run.__dataclass_fields__))

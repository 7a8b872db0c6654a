"""A JSON file of results: its settings, what else is in it, and a row a line."""

import json
from pathlib import Path
from typing import Any

from experiments.files import write_atomically


def read(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a file; none where there is no file yet.

    Args:
      path: the file.
      settings: those of today. The file may be older than some of them.

    Raises:
      ValueError: it holds rows of other settings.
    """
    if not path.exists():
        return []
    before = json.loads(path.read_text())
    if not _still_so(before["settings"], settings):
        raise ValueError(f"{path} holds runs of other settings: choose another --output")
    return before["rows"]


def write(path: Path, rows: list[dict[str, Any]], **parts: dict[str, Any]) -> None:
    """Replaces a file as a whole: first the parts, then a row a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f'"{name}": {json.dumps(part, indent=1)}' for name, part in parts.items()]
    lines.append('"rows": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]")
    write_atomically(path, "{" + ",\n".join(lines) + "}\n")


def _still_so(before: Any, now: Any) -> bool:
    if not isinstance(before, dict):
        return before == now
    return isinstance(now, dict) and all(
        key in now and _still_so(value, now[key]) for key, value in before.items()
    )

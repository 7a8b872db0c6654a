"""Your own text: the documents of a folder."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path


def read_folder(folder: Path) -> Iterator[str]:
    """Documents of all files below a folder, in the order of their paths.

    A ``.txt`` or ``.md`` file is a document; a ``.jsonl`` or ``.jsonl.gz`` file has one on each
    line, in the field ``"text"``. Hidden files and folders are left out.

    Raises:
        ValueError: If a line of a ``.jsonl`` file has no text; names file and line.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    for name in names:
        path = folder / name
        if any(part.startswith(".") for part in Path(name).parts) or not path.is_file():
            continue
        if name.endswith((".txt", ".md")):
            yield path.read_text(encoding="utf-8", errors="replace")
        elif name.endswith((".jsonl", ".jsonl.gz")):
            opener = gzip.open if name.endswith(".gz") else open
            with opener(path, "rt", encoding="utf-8") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield _text_field(line, f"{path}:{number}")


def _text_field(line: str, where: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{where}: expected a JSON object with a field "text"') from error
    if not isinstance(text, str):
        raise ValueError(f'{where}: the field "text" is of type {type(text).__name__}, not str')
    return text

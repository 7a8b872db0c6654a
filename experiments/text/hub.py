"""Tasks that are on the Hugging Face hub alone: GLUE's own training sets, and Commonsense-170K."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments.text.examples import Example, TaskData, choice
from experiments.text.streaming import check_reachable

GLUE = "nyu-mll/glue"
COMMONSENSE_170K = "zwhe99/commonsense_170k"
# The texts' names in the data, and what their labels 0, 1, ... mean. STS-B, which has grades
# instead of labels, is left out.
GLUE_TASKS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "cola": (("sentence",), ("unacceptable", "acceptable")),
    "sst2": (("sentence",), ("negative", "positive")),
    "mrpc": (("sentence1", "sentence2"), ("different", "equivalent")),
    "qqp": (("question1", "question2"), ("different", "duplicate")),
    "mnli": (("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
    "qnli": (("question", "sentence"), ("entailment", "no entailment")),
    "rte": (("sentence1", "sentence2"), ("entailment", "no entailment")),
    "wnli": (("sentence1", "sentence2"), ("no entailment", "entailment")),
}
_INSTRUCTION = "### Instruction:\n{}\n\n### Response:\n"


def glue(name: str, cache: Path, root: str = GLUE) -> TaskData:
    """One of ``GLUE_TASKS``: its training set, and its validation set to test on.

    The labels of the real tests are hidden, so that everybody reports the validation sets; of MNLI
    this is the matched one.

    Args:
        name: The task.
        cache: Where it is kept.
        root: On the hub, or a folder that is laid out like it.
    """
    fields, labels = GLUE_TASKS[name]
    held_out = "validation_matched" if name == "mnli" else "validation"

    def example(row: dict[str, Any]) -> Example:
        shown = "".join(f"{field.strip('12').title()}: {row[field].strip()}\n" for field in fields)
        return choice(f"{shown}Answer:", [f" {label}" for label in labels], int(row["label"]))

    train, test = (
        [example(row) for row in _rows(root, f"{name}/{split}-*.parquet", cache)]
        for split in ("train", held_out)
    )
    return TaskData(f"glue_{name}", train, test)


def commonsense_170k(cache: Path, root: str = COMMONSENSE_170K) -> TaskData:
    """The papers' collection of eight tasks' training sets, in its own instructions and answers.

    It has no test of its own: one question in a hundred is held out, by its text alone. (The tasks'
    tests are those of ``commonsense``, in other words.)

    Args:
        cache: Where it is kept.
        root: On the hub, or a folder that is laid out like it.

    Raises:
        ValueError: If an instruction does not say among which answers to choose.
    """
    train: list[Example] = []
    test: list[Example] = []
    for row in _rows(root, "data/train-*.parquet", cache):
        instruction, answer = row["instruction"].strip(), row["answer"].strip()
        names = instruction.rpartition("Answer format:")[2].strip().split("/")
        if answer not in names:
            raise ValueError(f"{root}: {answer!r} is none of the answers in {instruction!r}")
        answers = [f"the correct answer is {name}" for name in names]
        example = choice(_INSTRUCTION.format(instruction), answers, names.index(answer))
        held_out = int(hashlib.md5(instruction.encode()).hexdigest(), 16) % 100 == 0
        (test if held_out else train).append(example)
    return TaskData("commonsense_170k", train, test)


def _rows(root: str, files: str, cache: Path) -> Iterable[dict[str, Any]]:
    if not Path(root).is_dir():
        check_reachable(root, "take a task that a package carries, or a .jsonl file")
    import datasets  # noqa: PLC0415  slow to import, and only these tasks need it

    return datasets.load_dataset(
        root, data_files={"rows": files}, split="rows", cache_dir=str(cache / "hub")
    )

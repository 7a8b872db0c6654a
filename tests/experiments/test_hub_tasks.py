"""Tasks of the hub, from rows of the real data in files that are named and written as there."""

import urllib.error

import pyarrow as pa
import pyarrow.parquet
import pytest

from experiments.text import hub
from experiments.text.packages import DownloadError
from experiments.text.tasks import TASKS

RTE = [
    ("The girl was found in Drummondville.", "Drummondville contains the girl.", 1),
    ("Capital punishment acts as a deterrent.", "Capital punishment is a deterrent to crime.", 0),
    ("Hepburn's family will receive the proceeds.", "Proceeds go to Hepburn's family.", 0),
]
SST2 = [("bad . ", 0), ("cool ? ", 1), ("very bad . ", 0), ("yes , dull . ", 0)]
QUESTION = (
    "Please answer the following question with true or false, question: do iran and afghanistan "
    "speak the same language?\n\nAnswer format: true/false"
)
PLAN = (
    "Please choose the correct solution to the question: how do you {}?\n\nSolution1: do it\n\n"
    "Solution2: do not\n\nAnswer format: solution1/solution2"
)


def write(file, **columns):
    file.parent.mkdir(parents=True, exist_ok=True)
    pa.parquet.write_table(pa.table(columns), file)


def write_glue(root, name, rows, fields, held_out="validation"):
    for split, chosen in (("train", rows[:-1]), (held_out, rows[-1:]), ("test", rows[:1])):
        columns = dict(zip((*fields, "label"), map(list, zip(*chosen, strict=True)), strict=True))
        file = root / name / f"{split}-00000-of-00001.parquet"
        write(file, **columns, idx=list(range(len(chosen))))


def test_glue(tmp_path):
    root = tmp_path / "glue"
    write_glue(root, "rte", RTE, ("sentence1", "sentence2"))
    write_glue(root, "sst2", SST2, ("sentence",))
    write_glue(root, "mnli", RTE, ("premise", "hypothesis"), "validation_matched")
    rte = hub.glue("rte", tmp_path, str(root))
    assert (len(rte.train), len(rte.test)) == (2, 1)
    first = rte.train[0]
    assert first.prompt == f"Sentence: {RTE[0][0]}\nSentence: {RTE[0][1]}\nAnswer:"
    assert first.choices == (" entailment", " no entailment")
    assert first.parts[-1].text == " no entailment"
    sst2 = hub.glue("sst2", tmp_path, str(root))
    assert [example.gold for example in sst2.train] == [0, 1, 0]
    assert sst2.test[0].prompt == "Sentence: yes , dull .\nAnswer:"
    mnli = hub.glue("mnli", tmp_path, str(root))
    assert mnli.test[0].prompt.startswith("Premise: Hepburn's family")
    assert len(mnli.test[0].choices) == 3


def test_commonsense_170k(tmp_path):
    plans = [PLAN.format(f"solve problem {i}") for i in range(400)]
    write(
        tmp_path / "set" / "data" / "train-00000-of-00001.parquet",
        instruction=[QUESTION, *plans],
        input=[""] * 401,
        output=["the correct answer is true"] + ["the correct answer is solution2"] * 400,
        answer=["true"] + ["solution2"] * 400,
    )
    task = hub.commonsense_170k(tmp_path, str(tmp_path / "set"))
    assert len(task.train) + len(task.test) == 401
    assert 0 < len(task.test) < 20
    question = next(e for e in [*task.train, *task.test] if "iran" in e.prompt)
    assert question.choices == ("the correct answer is true", "the correct answer is false")
    assert question.gold == 0
    assert question.prompt.endswith("Answer format: true/false\n\n### Response:\n")
    assert task.test[0].parts[-1].text == "the correct answer is solution2"


def test_an_answer_that_is_not_offered_is_named(tmp_path):
    file = tmp_path / "set" / "data" / "train-00000-of-00001.parquet"
    write(file, instruction=[QUESTION], answer=["maybe"])
    with pytest.raises(ValueError, match="'maybe' is none of the answers"):
        hub.commonsense_170k(tmp_path, str(tmp_path / "set"))


@pytest.mark.parametrize("name", ["glue_cola", "commonsense_170k"])
def test_without_a_network_it_is_one_line_at_once(tmp_path, monkeypatch, name):
    def refuse(request, timeout):
        assert timeout <= 5
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(DownloadError, match="can't be reached") as error:
        TASKS[name](tmp_path)
    assert "\n" not in str(error.value)

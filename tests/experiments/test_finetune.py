"""Fine-tuning from end to end on a tiny checkpoint, and what it says to bad input."""

import gzip
import json

import jax
import numpy as np
import pytest

from experiments.finetune import main
from experiments.llama import huggingface
from experiments.text.tasks import load_task
from experiments.training import finetune_config, finetuning
from experiments.training.metrics import read_metrics
from experiments.training.subjects import subject_of
from tests.experiments.finetuned import run, run_stopped_and_continued
from tests.experiments.tiny_checkpoint import write_checkpoint, write_labels
from tests.experiments.tiny_encoder import write_encoder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    checkpoint = write_checkpoint(folder / "checkpoint")
    labels = write_labels(folder / "labels.jsonl")
    return [f"--model={checkpoint}", f"--task={labels}", "--batch-size=8", "--eval-every=10"]


WAYS = {
    "LoRA": ("--lr=2e-2", "--alpha=32"),
    "layerwise": ("--adapter=none", "--optimizer=fira", "--lr=1e-2", "--layerwise"),
}


@pytest.mark.parametrize("flags", WAYS.values(), ids=WAYS)
def test_learns_and_continues_exactly(inputs, tmp_path, flags):
    flags = (*flags, "--steps=60", "--checkpoint-every=20", "--eval-every=30")
    assert run_stopped_and_continued(inputs, flags, tmp_path, stop_after=31)["accuracy"] == 1
    first, *_, last = read_metrics(tmp_path / "parts" / "metrics.jsonl")
    assert last["train_loss"] < 0.6 * first["train_loss"]
    models = [huggingface.load(tmp_path / name / "model") for name in ("whole", "parts")]
    for x, y in zip(*map(jax.tree.leaves, models), strict=True):
        np.testing.assert_array_equal(x, y)
    finished = json.loads((tmp_path / "parts" / "summary.json").read_text())
    assert run(inputs, *flags, f"--output-dir={tmp_path / 'parts'}") == finished


def test_packed_rows_and_generation(inputs, tmp_path):
    finished = run(
        inputs, "--pack", "--seq-len=48", "--steps=60", "--lr=2e-2", "--alpha=32", "--batch-size=4",
        "--generate", f"--output-dir={tmp_path}",
    )  # fmt: skip
    assert finished["accuracy"] == 1
    assert finished["accuracy_generated"] == 1


# What an adapter needs, to learn as fast as the others and to begin where the model is.
ADAPTERS = {
    "dora": (),
    "sora": (),
    "lora_ga": (),
    "lora_sb": ("--lr=1e-1",),
    "lora_pro": (),
    "lora_ggpo": ("--noise=1e-4",),
    "prilora": ("--prune-every=3",),
    "pela": ("--rank=32", "--distillation=1e-3"),
    "maestro": ("--rank=32", "--rank-penalty=1e-5"),
}


@pytest.fixture(scope="module")
def untouched(inputs, tmp_path_factory):
    """The first batch's loss of the model as it is."""
    folder = tmp_path_factory.mktemp("plain")
    run(inputs, "--lr=0", "--steps=1", f"--output-dir={folder}")
    return read_metrics(folder / "metrics.jsonl")[0]["train_loss"]


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_every_adapter_starts_where_the_model_was_learns_and_resumes(
    inputs, untouched, tmp_path, adapter
):
    flags = (f"--adapter={adapter}", "--lr=1e-2", "--steps=12", "--rank=4", *ADAPTERS[adapter])
    summary = run_stopped_and_continued(inputs, flags, tmp_path, stop_after=7)
    first, *_, last = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    if adapter != "maestro":  # which trains with some of its directions
        np.testing.assert_allclose(first["train_loss"], untouched, rtol=2e-3)
    assert last["train_loss"] < 0.9 * first["train_loss"]
    # What was merged does what was trained.
    merged = run(
        [f"--model={tmp_path / 'whole' / 'model'}", *inputs[1:]], "--lr=0", "--steps=1",
        f"--output-dir={tmp_path / 'merged'}",
    )  # fmt: skip
    np.testing.assert_allclose(merged["eval_loss"], summary["eval_loss"], rtol=1e-4)


def test_prilora_prunes_while_it_trains(inputs, tmp_path):
    flags = ("--adapter=prilora", "--steps=4", "--rank=4", "--prune-every=2", "--pruned=0.25")
    config = finetune_config.parse([*inputs, *flags, "--lr=0"])
    subject = subject_of(config)
    _, task = finetuning.make_task(config, subject, 4)
    state = task.begin(None)
    between = task.make_between(None)
    assert between(1, state) is state
    factors = between(2, state).params["layers"]["mlp"]["down"]["lora_a"]
    task.data.close()
    assert factors.shape == (2, 64, 6)
    # 16 of 64 rows in every column, and none that was nothing: ranks are 2 and 6 of 6.
    assert (np.asarray(factors)[1] == 0).sum(0).tolist() == [16] * 6


def test_sora_closes_gates_and_says_how_many(inputs, tmp_path):
    flags = ("--adapter=sora", "--lr=1e-2", "--steps=30", "--rank=4")
    pulled = run(inputs, *flags, "--gate-penalty=20", f"--output-dir={tmp_path / 'pulled'}")
    free = run(inputs, *flags, "--gate-penalty=0", f"--output-dir={tmp_path / 'free'}")
    assert pulled["open_gates"] < 0.5 < free["open_gates"] == 1


@pytest.mark.slow
def test_accumulation_is_the_same_run(inputs, tmp_path):
    losses = []
    for count in (1, 4):
        folder = tmp_path / str(count)
        run(inputs, "--steps=4", f"--accumulate={count}", f"--output-dir={folder}")
        losses.append([r["train_loss"] for r in read_metrics(folder / "metrics.jsonl")])
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_memory_is_told_and_nothing_runs(inputs, tmp_path, capsys):
    assert run(inputs, "--memory", f"--output-dir={tmp_path / 'run'}") == {}
    assert "peak" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


GOOD = '{"prompt": "a", "completion": " b"}\n'
BAD_LINES = {
    "empty": ("", "is empty"),
    "no json": (GOOD + "{prompt: 1}\n", "examples.jsonl:2: not JSON"),
    "a list": (GOOD + "[1]\n", "examples.jsonl:2: expected an object like"),
    "other fields": (GOOD + '{"question": "a"}\n', r"examples.jsonl:2: has the fields"),
    "a number": (GOOD + '{"prompt": 1, "completion": "b"}\n', "prompt is of type int"),
    "no answer": (GOOD + '{"prompt": "a", "completion": " "}\n', "completion is empty"),
    "no assistant": (GOOD + '{"messages": [{"role": "user", "content": "a"}]}\n', "answer by"),
    "long answer": (
        json.dumps({"prompt": "a", "completion": " word" * 90}) + "\n" + GOOD * 2,
        "does not fit",
    ),
    "alone": (GOOD, "one example alone"),
    "no label": ('{"text": "a", "label": null}\n' * 2, r"jsonl:1: the label is None"),
    "label of several": ('{"text": "a", "label": ["x"]}\n' * 2, r"the label is \['x'\]"),
    "empty label": ('{"text": "a", "label": " "}\n' * 2, "expected a word or a number"),
    "one label": ('{"text": "a", "label": "x"}\n' * 2, "every label is x"),
}


@pytest.mark.parametrize(("text", "message"), BAD_LINES.values(), ids=BAD_LINES)
def test_bad_examples_are_named(inputs, tmp_path, text, message):
    (tmp_path / "examples.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        run(["--seq-len=32", "--batch-size=1", inputs[0], f"--task={tmp_path / 'examples.jsonl'}"])
    assert "\n" not in str(error.value)


def test_a_mark_of_the_byte_order_is_no_harm_and_damage_is_named(tmp_path):
    file = tmp_path / "examples.jsonl"
    file.write_text(GOOD * 3, encoding="utf-8-sig")
    assert len(load_task(str(file), None).train) == 2
    for name, data in (("no.jsonl.gz", b"123"), ("cut.jsonl.gz", gzip.compress(b"{}" * 99)[:-9])):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"{name}: damaged or cut short"):
            load_task(str(tmp_path / name), None)


def damaged_weights(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def index_without_files(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("{}")


def width_in_words(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": "wide"}))


DAMAGE = {
    "weights": (damaged_weights, r"model.safetensors: damaged or cut short"),
    "index": (index_without_files, "index.json: has no weight_map"),
    "width": (width_in_words, "hidden_size is 'wide', expected a number"),
    "config": (lambda folder: (folder / "config.json").write_text("{"), "config.json: not JSON"),
    "list": (lambda folder: (folder / "config.json").write_text("[]"), "expected a JSON object"),
    "tokenizer": (
        lambda folder: (folder / "tokenizer.json").write_text("{"),
        "tokenizer.json: no tokenizer",
    ),
}


@pytest.mark.parametrize("write", [write_checkpoint, write_encoder], ids=["llama", "encoder"])
@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_folders_are_named_in_one_line(inputs, tmp_path, write, damage, message):
    folder = write(tmp_path / "model")
    damage(folder)
    config = finetune_config.parse([*inputs, f"--model={folder}"])
    with pytest.raises(ValueError, match=message) as error:
        subject_of(config).read(0)
    assert "\n" not in str(error.value)


BAD_FLAGS = {
    "model": (["--model=nowhere"], "no model 'nowhere'"),
    "task": (["--task=nothing"], "no task 'nothing'"),
    "adapter": (["--adapter=other"], "unknown adapter"),
    "both": (["--optimizer=fira"], "trained by AdamW"),
    "layerwise": (["--layerwise"], "layerwise"),
    "batch": (["--accumulate=3"], "does not split"),
    "rows": (["--batch-size=512"], "more than the"),
    "context": (["--seq-len=100"], "above the model's context of 64"),
    "optimizer": (["--adapter=none", "--optimizer=other"], "unknown optimizer"),
}


@pytest.mark.parametrize(("flags", "message"), BAD_FLAGS.values(), ids=BAD_FLAGS)
def test_bad_flags_end_in_one_line(inputs, tmp_path, monkeypatch, flags, message):
    arguments = [*inputs, f"--output-dir={tmp_path / 'run'}", *flags]
    monkeypatch.setattr("sys.argv", ["finetune", *arguments])
    with pytest.raises(SystemExit, match=message):
        main()


def test_a_folder_without_tokenizer_or_of_another_kind_is_refused(inputs, tmp_path):
    folder = write_checkpoint(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no tokenizer"):
        run(inputs, f"--model={folder}")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    with pytest.raises(ValueError, match="model_type is 'gpt2'"):
        run(inputs, f"--model={folder}")

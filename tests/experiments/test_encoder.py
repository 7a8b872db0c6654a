"""Fine-tuning an encoder: its parts, runs from end to end, and what it refuses."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from experiments.encoder import huggingface
from experiments.llama.adapt import adapt, freeze_rest, merge_adapters
from experiments.text.examples import choice
from experiments.text.label_batches import EncoderTokenizer, LabelRows, labels_of
from experiments.training.step import split
from tests.experiments.finetuned import run, run_stopped_and_continued
from tests.experiments.tiny_checkpoint import write_labels
from tests.experiments.tiny_encoder import CONFIG, write_encoder

LABELS = ("animal", "number")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    encoder = write_encoder(folder / "encoder")
    labels = write_labels(folder / "labels.jsonl")
    return [f"--model={encoder}", f"--task={labels}", "--batch-size=8", "--eval-every=10"]


@pytest.fixture(scope="module")
def folder(inputs):
    return Path(inputs[0].removeprefix("--model="))


def trained_names(model):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree.leaves_with_path(split(model)[0])
    }


def test_what_is_trained(folder):
    head = {f"classifier/{name}" for name in ("pooler", "out")}
    kernels = {f"layers/attn/{name}" for name in "qkvo"} | {"layers/mlp/up", "layers/mlp/down"}
    matrices = huggingface.load(folder, LABELS)
    freeze_rest(matrices)
    assert trained_names(matrices) == head | kernels
    lora = huggingface.load(folder, LABELS)
    everything = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(lora)))
    adapt(lora, "lora", 4, 16, 0)
    factors = {f"{name}/lora_{which}" for name in kernels for which in "ab"}
    assert trained_names(lora) == head | factors
    merge_adapters(lora)
    jax.tree.map(np.testing.assert_array_equal, split(lora)[0], everything)


def test_padding_is_not_looked_at(folder):
    model = huggingface.load(folder, LABELS)
    tokens = np.array([[2, 7, 9, 3, 0, 0], [2, 5, 3, 0, 0, 0]])
    lengths = np.array([4, 3])
    padded = tokens.copy()
    padded[0, 4:], padded[1, 3:] = 11, 12
    np.testing.assert_array_equal(model(tokens, lengths), model(padded, lengths))
    alone = model(tokens[1:, :3], lengths[1:])
    np.testing.assert_allclose(model(tokens, lengths)[1:], alone, atol=1e-5)


def test_rows(folder):
    examples = [choice("the cat sleeps", [" a", " b"], 1), choice("a dog", [" a", " b"], 0)]
    assert labels_of(examples) == ("a", "b")
    texts, cut = EncoderTokenizer(folder, 4).encode(examples)
    assert cut == 1
    assert [len(ids) for ids in texts] == [4, 4]
    assert texts[0][0] == 2
    assert texts[0][-1] == 3
    batch = LabelRows(texts, examples, 6).take(np.array([1, 0]))
    assert batch["labels"].tolist() == [0, 1]
    assert batch["lengths"].tolist() == [4, 4]
    assert not batch["tokens"][:, 4:].any()
    with pytest.raises(ValueError, match="sorts texts into classes"):
        labels_of([*examples, choice("x", [" c"], 0)])


WAYS = {
    "LoRA": ("--lr=2e-2", "--alpha=32"),
    "Fira": ("--adapter=none", "--optimizer=fira", "--lr=1e-2", "--train=matrices"),
}


@pytest.mark.parametrize("flags", WAYS.values(), ids=WAYS)
def test_learns_continues_exactly_and_its_export_is_the_model(inputs, tmp_path, flags):
    flags = (*flags, "--steps=30", "--checkpoint-every=10", "--rank=4")
    whole = run_stopped_and_continued(inputs, flags, tmp_path, stop_after=14)
    assert whole["accuracy"] == 1
    # The export is a checkpoint like any other, with a classifier that knows its labels.
    exported = tmp_path / "whole" / "model"
    assert json.loads((exported / "config.json").read_text())["id2label"] == {
        "0": "animal", "1": "number",
    }  # fmt: skip
    still = run(
        [f"--model={exported}", *inputs[1:]],
        "--lr=0",
        "--steps=1",
        f"--output-dir={tmp_path / 'o'}",
    )
    assert still["accuracy"] == 1
    np.testing.assert_allclose(still["eval_loss"], whole["eval_loss"], rtol=1e-3)


def test_a_classifier_of_other_labels_is_drawn_anew(folder):
    same, other = (huggingface.load(folder, labels, seed=5) for labels in (("0", "1"), LABELS))
    np.testing.assert_array_equal(same.classifier.pooler[...], other.classifier.pooler[...])
    assert np.any(same.classifier.out[...] != other.classifier.out[...])
    assert other.classifier.out.shape == (CONFIG.hidden_size, 2)


def test_another_seed_draws_another_classifier(inputs, tmp_path):
    losses = {
        run(inputs, "--lr=0", "--steps=1", f"--seed={s}", f"--output-dir={tmp_path / str(s)}")[
            "eval_loss"
        ]
        for s in range(2)
    }
    assert len(losses) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--layerwise", "--adapter=none"], "layerwise is for models that write"),
        (["--pack"], "pack is for models that write"),
        (["--seq-len=100"], "above the model's 24 positions"),
        (["--batch-size=512"], "more than the"),
    ],
)
def test_impossible_settings_are_named(inputs, tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        run(inputs, *flags, f"--output-dir={tmp_path}")


def test_texts_without_classes_are_refused(inputs, tmp_path):
    file = tmp_path / "free.jsonl"
    file.write_text('{"prompt": "a", "completion": " b"}\n' * 4)
    with pytest.raises(ValueError, match="sorts texts into classes"):
        run(inputs, f"--task={file}")
    file.write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
        * 4
    )
    with pytest.raises(ValueError, match="reads no chats"):
        run(inputs, f"--task={file}")


def test_a_folder_without_tokenizer_or_of_another_kind_is_refused(inputs, tmp_path):
    folder = write_encoder(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no tokenizer"):
        run(inputs, f"--model={folder}")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    with pytest.raises(ValueError, match="hidden_act is 'relu'"):
        run(inputs, f"--model={folder}")

"""The model files: the paper's sizes and settings, and errors that help."""

import re

import jax
import pytest
from flax import nnx

from experiments.llama.configs import CONFIG_DIR, available, load_model_config
from experiments.llama.model import Llama, LlamaConfig

# Counted in the released code's models.
PAPER_COUNTS = {
    "llama_60m": 58_073_600,
    "llama_130m": 134_105_856,
    "llama_350m": 367_969_280,
    "llama_1b": 1_339_082_752,
    "llama_7b": 6_738_415_616,
}
# lr, scale, rank, update_proj_gap, steps, warmup_steps, grad_clip of the released scripts.
PAPER_TRAINING = {
    "llama_60m": (0.01, 0.25, 128, 200, 10_000, 1_000, 0.0),
    "llama_130m": (0.01, 0.25, 256, 200, 20_000, 2_000, 0.0),
    "llama_350m": (0.01, 0.25, 256, 200, 60_000, 6_000, 0.0),
    "llama_1b": (0.01, 0.0625, 512, 200, 100_000, 10_000, 0.0),
    "llama_7b": (0.005, 0.0625, 64, 500, 10_000, 1_000, 1.0),
}
TRAIN_KEYS = {
    *("optimizer", "lr", "scale", "rank", "update_proj_gap", "batch_size", "seq_len", "steps"),
    *("warmup_steps", "min_lr_ratio", "weight_decay", "grad_clip", "dtype", "eval_every"),
}


def test_all_sizes_are_there_in_order():
    sizes = "200k 1m 9m 20m 35m 40m 60m 71m 100m 130m 250m 350m 1b 3b 7b 13b 30b 65b"
    assert available() == [f"llama_{size}" for size in sizes.split()]


@pytest.mark.parametrize("name", available())
def test_file_agrees_with_its_model_and_its_header(name):
    config, train = load_model_config(name)
    params = nnx.state(nnx.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(0))), nnx.Param)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == config.parameter_count == PAPER_COUNTS.get(name, count)

    assert set(train) == TRAIN_KEYS
    assert train["seq_len"] <= config.max_sequence_length
    assert train["rank"] < config.hidden_size
    tokens = train["steps"] * train["batch_size"] * train["seq_len"]
    header = (CONFIG_DIR / f"{name}.yaml").read_text().split("\nmodel:")[0]
    assert f"python -m experiments.pretrain --model {name}\n" in header
    numbers = re.findall(r"[\d,]+ parameters; sees [\d,]+ tokens", header)
    assert numbers == [f"{count:,} parameters; sees {tokens:,} tokens"]


@pytest.mark.parametrize("name", PAPER_TRAINING)
def test_training_is_the_released_scripts(name):
    _, train = load_model_config(name)
    keys = ("lr", "scale", "rank", "update_proj_gap", "steps", "warmup_steps", "grad_clip")
    assert tuple(train[key] for key in keys) == PAPER_TRAINING[name]
    assert (train["batch_size"], train["seq_len"], train["dtype"]) == (512, 256, "bfloat16")


MINIMAL = """
model: {vocab_size: 8, hidden_size: 8, intermediate_size: 8, num_layers: 1, num_heads: 2,
        max_sequence_length: 4, rms_eps: 1e-6, rope_theta: 5e5}
"""


def write(folder, text):
    file = folder / "mine.yaml"
    file.write_text(text)
    return file


def test_a_file_of_ones_own(tmp_path):
    config, train = load_model_config(write(tmp_path, MINIMAL))
    assert config == LlamaConfig(8, 8, 8, 1, 2, 4, rms_eps=1e-6, rope_theta=500000.0)
    assert train == {}
    _, train = load_model_config(str(write(tmp_path, MINIMAL + "train: {lr: 1e-2, steps: 10}")))
    assert train == {"lr": 0.01, "steps": 10}


def test_unknown_names_list_the_known_with_their_sizes(tmp_path):
    with pytest.raises(ValueError, match=r"(?s)'llama_2b'.*llama_60m +58,073,600 parameters"):
        load_model_config("llama_2b")
    with pytest.raises(ValueError, match=r"nowhere\.yaml"):
        load_model_config(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a section `model:`"),
        ("- model", "expected a section `model:`"),
        (MINIMAL + "optimizer: {}", "expected a section `model:`"),
        (MINIMAL + "train: 3", "expected a section `model:`"),
        (MINIMAL.replace("num_heads", "heads"), "unknown heads; expected some of vocab_size"),
        (MINIMAL.replace("num_heads: 2,", ""), "missing num_heads"),
        (MINIMAL.replace("num_heads: 2", "num_heads: 3"), "mine.yaml, model: hidden_size must"),
        (MINIMAL.replace("rms_eps: 1e-6", "dtype: float31"), "mine.yaml, model: .*float31"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load_model_config(write(tmp_path, text))

"""What the command predicts is near what the compilers say, and exact where it says so."""

import functools
import json
from pathlib import Path

import pytest

import experiments
from benchmarks import fits
from experiments import memory
from experiments.llama.model import LlamaConfig
from experiments.mesh import mesh_sizes
from experiments.training.optimizers import build_optimizer

ROOT = Path(experiments.__file__).parents[1]
TABLE = ROOT / fits.RESULT
ROWS = json.loads(TABLE.read_text())["rows"] if TABLE.exists() else []
PREDICTED = [row for row in ROWS if "predicted_gib" in row]
MODEL = LlamaConfig(258, 32, 64, 3, 4, 16)


@functools.cache
def predict(batch_size=8, mesh=None, **options):
    run = memory.PretrainConfig(rank=4, steps=10, warmup_steps=1)
    optimizer = build_optimizer(run, lambda _: 1e-2)
    sizes = mesh_sizes(mesh) if mesh else None
    return memory.predict(MODEL, optimizer, batch_size, 16, sizes=sizes, **options)


@pytest.mark.parametrize("row", PREDICTED, ids=lambda row: f"{row['model']} {row['topology']}")
def test_the_peak_is_within_a_tenth_of_the_compilers(row):
    assert row["predicted_gib"] == pytest.approx(row["peak_gib"], rel=memory.MARGIN)


def test_the_table_has_what_is_predicted_now():
    """One row stands for all; its own numbers first, so that it holds without a table too."""
    args = fits.parser().parse_args(["--model", "llama_7b", "--batch", "1"])
    now = fits.predicted_gib(args)
    assert now == pytest.approx(14.22, rel=memory.MARGIN)  # the TPU compiler's, see the guide
    same = ("llama_7b", "v5e:1x1", "fira", 64, "layerwise", 2048)
    names = ("model", "topology", "method", "rank", "step", "tokens_per_step")
    for row in PREDICTED:
        if tuple(row[name] for name in names) == same:
            assert row["predicted_gib"] == now


def test_the_corners_are_the_largest_model_and_the_most_tokens_that_fit():
    def row(model, tokens, fits=True, **changes):
        common = {"topology": "a", "memory_gib": 16.0, "method": "fira", "weights": "bfloat16"}
        here = {"model": model, "tokens_per_step": tokens, "fits": fits, "peak_gib": 9.5}
        return {**common, "oversample": None, **here, **changes}

    small, large = row("llama_7b", 4096), row("llama_13b", 1024, weights="int8")
    left_out = row("llama_7b", 8192, fits=False), row("llama_7b", 8192, oversample=0)
    other = row("llama_1b", 2048, method="adamw")
    assert fits.corners([row("llama_7b", 2048), other, small, large, *left_out]) == [
        {
            "topology": "a",
            "memory_gib": 16.0,
            "method": "fira",
            "largest_model": "llama_13b, int8 weights, 1,024 tokens: 9.5 GiB",
            "most_tokens_of_7b": "llama_7b, 4,096 tokens: 9.5 GiB",
        },
        {
            "topology": "a",
            "memory_gib": 16.0,
            "method": "adamw",
            "largest_model": "llama_1b, 2,048 tokens: 9.5 GiB",
            "most_tokens_of_7b": None,
        },
    ]


def test_a_mesh_splits_weights_and_state_exactly_and_activations():
    alone, split = predict(), predict(mesh="fsdp=4,tensor=2")
    assert alone.weight_bytes == alone.gradient_bytes == 4 * MODEL.parameter_count
    norms = 4 * MODEL.hidden_size * (2 * MODEL.num_layers + 1)  # are whole on every device
    assert split.weight_bytes == (alone.weight_bytes - norms) / 8 + norms
    assert split.state_bytes < alone.state_bytes / 8 + 2 * norms + 1000
    assert 0 < split.gathered_bytes < alone.weight_bytes / MODEL.num_layers
    assert alone.working_bytes / 8 < split.working_bytes < alone.working_bytes / 2


def test_more_tokens_need_more_and_accumulation_less():
    at_once = predict(batch_size=64)
    assert predict().working_bytes < at_once.working_bytes
    assert predict(batch_size=64, accumulate=8).working_bytes < at_once.working_bytes


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="8 sequences do not divide into 3 micro-batches"):
        predict(accumulate=3)
    with pytest.raises(ValueError, match="for one device"):
        predict(mesh="fsdp=8", layerwise=True)


def test_the_command_takes_the_rest_from_the_models_file(capsys):
    assert memory.parse(["--model", "llama_7b"]).rank == 64
    memory.main(["--model", "llama_1m", "--dtype", "float32"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("llama_1m, fira, rank 32, float32")
    sizes = {line[:24].strip(): float(line[24:33]) for line in lines if line[33:37] == " GiB"}
    parts = sizes["weights"] + sizes["optimizer state"] + sizes["at the worst moment"]
    assert sizes["peak"] == pytest.approx(parts, abs=0.002)
    assert "fits: yes" in lines[-1]

"""The examples run: they learn, save memory, and resume exactly (which each checks itself)."""

import importlib
from pathlib import Path

import pytest

FRAMEWORKS = {
    "flax_nnx": "flax",
    "flax_linen": "flax",
    "equinox_model": "equinox",
    "haiku_model": "haiku",
    "keras_model": "keras",
    "tunix_trainer": "tunix",
    "vision_transformer": "flax",
    "mixture_of_experts": "jax",
}


def test_every_example_is_run():
    files = {path.stem for path in (Path(__file__).parents[1] / "examples").glob("*.py")}
    assert files - {"shared"} == FRAMEWORKS.keys()


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_example(name, monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    pytest.importorskip("orbax.checkpoint", reason="needs orbax-checkpoint")
    pytest.importorskip(FRAMEWORKS[name], reason=f"needs {FRAMEWORKS[name]}")
    losses, table = importlib.import_module(f"examples.{name}").main()
    assert losses[-1] < 0.8 * losses[0]
    assert table.state_bytes < 0.7 * table.adam_bytes
    assert "resumed exactly" in capsys.readouterr().out

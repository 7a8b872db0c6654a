"""Measurements along runs: made once each, kept when stopped, and what they measure."""

import json

import numpy as np
import pytest

from experiments.reproduce import run as runs
from experiments.reproduce import spectra, spikes
from experiments.reproduce.along import every, fill
from experiments.reproduce.settings import settings


def test_what_is_measured_is_kept_and_not_measured_again(tmp_path):
    asked, output = [], tmp_path / "deep" / "found.json"

    def measure(size, seed):
        asked.append((size, seed))
        if seed == 2:
            raise KeyboardInterrupt
        return [{"size": size, "seed": seed, "step": step, "curve": [1]} for step in (0, 1)]

    with pytest.raises(KeyboardInterrupt):
        fill(output, every(size=["a"], seed=range(3)), measure)
    fill(output, every(size=["a", "b"], seed=range(2)), measure)
    assert asked == [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1)]
    assert len(json.loads(output.read_text())["rows"]) == 8


def with_settings(output, change):
    found = settings()
    change(found)
    output.write_text(json.dumps({"settings": found, "rows": [{"size": "a", "seed": 0}]}))


def test_rows_outlive_new_settings_but_not_other_ones(tmp_path):
    output = tmp_path / "found.json"

    def measure(size, seed):
        return [{"size": size, "seed": seed}]

    with_settings(output, lambda found: found["sizes"].pop("25m"))
    fill(output, every(size=["a"], seed=range(2)), measure)
    kept = json.loads(output.read_text())
    assert kept == {"settings": settings(), "rows": measure("a", 0) + measure("a", 1)}

    for change in (
        lambda found: found.update(tokenizer="words"),
        lambda found: found["sizes"]["1m"].update(steps=1),
        lambda found: found["sizes"].update(gone={}),
    ):
        with_settings(output, change)
        before = output.read_text()
        with pytest.raises(ValueError, match=r"found\.json holds runs of other settings"):
            fill(output, every(size=["a"], seed=range(2)), measure)
        assert output.read_text() == before


def test_spectra_of_known_matrices():
    low = np.outer([1.0, 1.0], [8.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.125, 0.0625])
    found = spectra.line(low)
    assert found["stable_rank"] == pytest.approx(4 / 3, rel=1e-3)
    assert found["energy_in_8th"] == pytest.approx(3 / 4, rel=1e-3)
    assert found["energy_in_2th"] > found["energy_in_4th"] > found["energy_in_8th"]
    assert found["spectrum"] == pytest.approx([2.0**-i for i in range(8)], rel=1e-3)


def test_a_spike_is_far_above_the_losses_before_it():
    rng = np.random.default_rng(0)
    losses = 3 - 0.005 * np.arange(200) + 0.05 * rng.standard_normal(200)
    assert not spikes.jumps(losses).size
    losses[[50, 120]] += 1.0
    assert spikes.jumps(losses) == pytest.approx([1.0, 1.0], abs=0.25)
    assert not spikes.jumps(losses[:10]).size


def test_steps_of_a_run_are_those_of_its_row(monkeypatch):
    """Every loss is seen, and a run whose loss is not finite ends there."""
    run = runs.Run("fira", "200k", 4, 0, 0.01, 25)
    losses = [step.loss for step in runs.steps_of(run)]
    row = runs.train(run)
    assert row["train_losses"] == [np.mean(losses[:20]), np.mean(losses[20:])]
    assert row["eval_loss"] == row["curve"][-1][1]

    compiled = runs.programs(run.method, run.size, run.rank)
    given = iter([3.0, 2.5, np.nan, 1.0])
    broken = compiled._replace(step=lambda state, *_: (state, np.float32(next(given))))
    monkeypatch.setattr(runs, "programs", lambda *_: broken)
    diverged = runs.train(run)
    assert (diverged["eval_loss"], diverged["curve"]) == (None, [])
    assert next(given) == 1.0

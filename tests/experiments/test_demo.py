"""The demo's parts; the demo itself runs in ``make demo``."""

import dataclasses
import json

import pytest

from experiments import demo
from experiments.demo_figure import draw
from experiments.demo_sweep import search
from experiments.training.config import parse
from tests.experiments.tiny_run import write_inputs


def test_search_goes_downhill_to_an_interior_minimum():
    tried: list[float] = []

    def loss(lr: float) -> float:
        tried.append(lr)
        return (lr - 0.0026) ** 2 if lr < 0.015 else float("inf")

    losses = search(loss, start=0.01)
    assert min(losses, key=losses.get) == 0.0025
    assert sorted(losses) == [0.00125, 0.0025, 0.005, 0.01, 0.02]
    assert len(tried) == len(set(tried))


def test_recorded_sweep_is_of_the_demo_and_encloses_each_best_learning_rate():
    sweep = json.loads(demo.SWEEP.read_text())
    assert sweep["settings"] == demo.SETTINGS
    best = demo.best_learning_rates(sweep)
    assert set(best) == set(demo.OPTIMIZERS)
    for name, runs in sweep["runs"].items():
        rates = [run["lr"] for run in runs]
        assert min(rates) < best[name] < max(rates)


def test_runs_differ_in_nothing_but_the_optimizer(tmp_path):
    configs = [demo.run_config(name, 0.01, tmp_path) for name in demo.OPTIMIZERS]
    assert len({config.optimizer for config in configs}) == len(demo.OPTIMIZERS) == 4
    assert len({dataclasses.replace(config, optimizer="") for config in configs}) == 1


def test_update_is_timed(tmp_path):
    config = parse([*write_inputs(tmp_path), "--optimizer=adamw"])
    times = demo.update_milliseconds([config], rounds=3)
    assert set(times) == {"adamw"}
    assert 0 < times["adamw"] < 1000


@pytest.fixture
def results():
    return {
        name: {
            "lr": 0.01,
            "curve": [(10, 5.0), (20, 4.0 - number)],
            "perplexity": 50.0 - number,
            "optimizer_state_bytes": 8_000_000 // (1 + number),
            "ms_per_update": 1.5,
            "tokens_per_second": 4321.0,
        }
        for number, name in enumerate(demo.OPTIMIZERS)
    }


def test_picture_is_drawn(results, tmp_path):
    draw({demo.OPTIMIZERS[name]: result for name, result in results.items()}, tmp_path / "x.png")
    png = (tmp_path / "x.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert len(png) > 20_000


def test_table_shows_every_number(results):
    columns = demo.table(results).columns
    assert list(columns[0].cells) == ["AdamW", "GaLore", "Fira", "Fira, orthogonalized"]
    assert list(columns[3].cells)[1] == "4.00 MB (50%)"
    assert set(columns[5].cells) == {"4,321"}

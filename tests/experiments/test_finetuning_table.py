"""The fine-tuning table and its demo: their rules, a real run, and the published files."""

import json
import math

import pytest

from experiments import finetune_demo as demo
from experiments.reproduce import finetuning
from experiments.reproduce.budget import Budget, OutOfTimeError
from experiments.reproduce.finetuning import FINETUNING, METHODS, Run
from experiments.reproduce.search import on_grid, rate
from experiments.reproduce.settings import SEARCH_SEED
from experiments.reproduce.statistics import paired
from experiments.reproduce.store import Store
from experiments.training.finetune_config import validate
from tests.experiments.tiny_checkpoint import write_checkpoint, write_labels
from tests.experiments.tiny_encoder import write_encoder


def row(method="lora", seed=0, loss=1.0, lr=0.01, accuracy=0.5, model="smollm2_135m"):
    return {
        "model": model, "method": method, "task": "trec", "rank": 8, "seed": seed, "lr": lr,
        "eval_loss": loss, "train_loss": loss,
        "accuracy": accuracy, "accuracy_interval": [0.4, 0.6],
        "trained_parameters": 10, "state_bytes": 80, "ms_per_step": 1.0,
    }  # fmt: skip


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Settings of a tiny LLaMA and a tiny encoder; returns their task."""
    changes = {"steps": 6, "warmup_steps": 1, "test_examples": 12}
    for kind, write in (("llama", write_checkpoint), ("encoder", write_encoder)):
        settings = finetuning.SETTINGS | changes | {"model": str(write(tmp_path / kind))}
        monkeypatch.setitem(finetuning.MODELS, kind, settings)
    finetuning._subject.cache_clear()
    yield str(write_labels(tmp_path / "labels.jsonl"))
    finetuning._subject.cache_clear()


@pytest.mark.parametrize(("method", "model"), [("lora", "llama"), ("fira", "encoder")])
def test_a_run_learns_and_is_the_same_when_it_is_done_again(tiny, method, model):
    still = finetuning.train(Run(method, tiny, 4, 0, 0.0, model))
    learnt, again = (finetuning.train(Run(method, tiny, 4, 0, 2e-2, model)) for _ in range(2))
    assert learnt["model"] == model
    assert learnt["eval_loss"] < still["eval_loss"]
    assert {k: v for k, v in learnt.items() if k != "ms_per_step"} == {
        k: v for k, v in again.items() if k != "ms_per_step"
    }
    low, high = learnt["accuracy_interval"]
    assert low <= learnt["accuracy"] <= high


def test_a_line_of_the_table_by_hand():
    rows = [row(seed=s, loss=1 + s / 10, accuracy=0.4 + s / 10) for s in range(3)]
    rows += [row("fira", seed=s, loss=0.5 + s / 5, lr=rate(1)) for s in range(3)]
    rows += [row("fira", seed=SEARCH_SEED, loss=x, lr=rate(k)) for k, x in enumerate((2.0, 0.4))]
    rows += [row("fira", seed=7, loss=9.0, lr=rate(3))]  # not at the best rate
    rows += [row("fira", loss=7.0, model="minilm")]
    of_encoder, fira, lora = finetuning.table(rows)
    assert (of_encoder["model"], of_encoder["eval_loss"]) == ("minilm", 7.0)
    assert (fira["model"], lora["model"]) == ("smollm2_135m",) * 2
    assert (fira["method"], fira["seeds"], fira["lr"]) == ("fira", 3, rate(1))
    assert fira["eval_loss"] == pytest.approx(0.7)
    assert fira["spread"] == pytest.approx(0.2)
    assert fira["percent_beside_lora"] == pytest.approx(100 * (math.exp(-0.4) - 1))
    ours, theirs = ({s: a + s / b for s in range(3)} for a, b in ((0.5, 5), (1.0, 10)))
    assert fira["p_beside_lora"] == pytest.approx(paired(ours, theirs)[1])
    assert lora["accuracy"] == pytest.approx(0.5)
    assert lora["p_beside_lora"] is None


def test_it_searches_then_trains_and_goes_on_where_it_stopped(tmp_path):
    trained = []

    def train(run):
        trained.append(run)
        return row(run.method, run.seed, 1 + abs(on_grid(run.lr) + 9), run.lr, model=run.model)

    path = tmp_path / "rows.json"
    budget = Budget(Store(path, FINETUNING), -1, train)
    with pytest.raises(OutOfTimeError):
        finetuning.search_and_train(budget, ["lora"], "smollm2_135m", "trec", 8, range(2))
    assert not trained
    for _ in range(2):
        budget = Budget(Store(path, FINETUNING), 1, train)
        finetuning.search_and_train(budget, ["lora", "fira"], "minilm", "trec", 8, range(2))
    assert len(trained) == len(set(trained))
    finals = [run for run in trained if run.seed != SEARCH_SEED]
    assert [(run.method, run.seed) for run in finals] == [
        ("lora", 0), ("fira", 0), ("lora", 1), ("fira", 1)
    ]  # fmt: skip
    assert {on_grid(run.lr) for run in finals} == {-9}


def test_a_file_from_before_the_encoder_is_read(tmp_path):
    path = tmp_path / "rows.json"
    settings = {k: v for k, v in finetuning.settings().items() if k != "encoder"}
    old = {k: v for k, v in row().items() if k != "model"}
    path.write_text(json.dumps({"settings": settings, "rows": [old]}))
    assert list(Store(path, FINETUNING).rows.values()) == [row()]
    path.write_text(json.dumps({"settings": settings | {"steps": 41}, "rows": [old]}))
    with pytest.raises(ValueError, match="other settings"):
        Store(path, FINETUNING)


def test_published_rows_are_of_these_settings_and_their_rates_enclosed():
    published = json.loads(finetuning.PUBLISHED.read_text())
    assert published["settings"] == json.loads(json.dumps(finetuning.settings()))
    assert published["table"] == finetuning.table(published["rows"])
    for line in published["table"]:
        tried = {
            on_grid(r["lr"]): math.inf if r["eval_loss"] is None else r["eval_loss"]
            for r in published["rows"]
            if r["seed"] == SEARCH_SEED
            and all(r[key] == line[key] for key in ("model", "method", "task", "rank"))
        }
        place = on_grid(line["lr"])
        assert tried[place] <= min(tried[place - 1], tried[place + 1]), line["method"]


def test_the_demo_takes_the_best_published_rates():
    rows = json.loads(finetuning.PUBLISHED.read_text())["rows"]
    assert demo.best_learning_rates(rows).keys() == demo.TITLES.keys()
    with pytest.raises(ValueError, match=r"no learning rate for \['fira'\]"):
        demo.best_learning_rates([r for r in rows if r["method"] != "fira"])


def test_the_recorded_demo_is_of_these_settings():
    recorded = json.loads(demo.RESULTS.read_text())
    assert recorded["settings"] == demo.SETTINGS
    assert recorded["results"].keys() == demo.TITLES.keys()


def test_the_demos_runs_differ_in_nothing_but_the_method(tmp_path):
    configs = [demo.run_config(name, 0.01, tmp_path) for name in demo.TITLES]
    assert {(c.task, c.rank, c.steps, c.seed, c.batch_size) for c in configs} == {
        ("trec", 8, 40, 0, 8)
    }
    assert [(c.adapter, c.optimizer) for c in configs] == [
        ("lora", "adamw"), ("none", "galore"), ("none", "fira")
    ]  # fmt: skip


def test_every_method_is_one_that_finetune_knows():
    for model in finetuning.MODELS:
        for name in METHODS:
            validate(finetuning.config_of(Run(name, "trec", 8, 0, 1e-3, model)))


def test_the_demos_table_and_picture(tmp_path):
    result = {
        "lr": 0.001, "accuracy": 0.5, "accuracy_interval": [0.4, 0.6], "trained_parameters": 2e6,
        "optimizer_state_bytes": 18e6, "curve": [(10, 2.0), (20, 1.0)],
    }  # fmt: skip
    results = dict.fromkeys(demo.TITLES, result)
    assert demo.table(results).row_count == 3
    path = tmp_path / "demo.png"
    demo.draw({demo.TITLES[name]: r for name, r in results.items()}, path, said=lambda _: "")
    assert path.stat().st_size > 10_000

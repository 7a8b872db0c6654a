"""The tables of experiments.reproduce: their rules, and the published file beside the code."""

import json
import math

import numpy as np
import optax
import pytest

from experiments.reproduce import campaign as campaigns
from experiments.reproduce.budget import OutOfTimeError
from experiments.reproduce.campaign import Campaign
from experiments.reproduce.methods import METHODS, WITHOUT_RANK
from experiments.reproduce.run import Run, peak_to_schedule
from experiments.reproduce.search import downhill, on_grid, rate
from experiments.reproduce.settings import MIN_LR_RATIO, SEARCH_SEED, SIZES, settings
from experiments.reproduce.statistics import holm, paired, searches, summary
from experiments.reproduce.store import PUBLISHED, TABLES, Store


def row(method="fira", seed=0, loss=2.0, lr=0.01, steps=250, rank=8, **more):
    return {
        "method": method, "size": "200k", "rank": rank, "seed": seed, "lr": lr, "steps": steps,
        "eval_loss": loss, "perplexity": math.exp(loss), "state_bytes": 10,
        "matrix_state_bytes": 5, "ms_per_step": 1.0, **more,
    }  # fmt: skip


def test_published_files_are_of_these_settings():
    for path in (PUBLISHED,):
        assert json.loads(path.read_text())["settings"] == settings(), path


def test_published_rows_hold_what_a_reader_needs():
    published = json.loads(PUBLISHED.read_text())
    wanted = {
        "method", "size", "rank", "seed", "lr", "eval_loss", "perplexity", "state_bytes",
        "ms_per_step",
    }  # fmt: skip
    for row in published["rows"]:
        assert wanted <= row.keys()
        assert row["method"] in METHODS
        if row["eval_loss"] is not None:
            assert math.isclose(row["perplexity"], math.exp(row["eval_loss"]), rel_tol=1e-6)
    assert published["searches"] == searches(published["rows"])
    for name, table in TABLES.items():
        fresh = summary(published["rows"], table.methods, table.beside)
        assert fresh == published["tables"][name], name


def test_published_learning_rates_lie_between_two_that_are_worse():
    """Of the rows that went into the tables, on the seed of the search."""
    rows = json.loads(PUBLISHED.read_text())["rows"]
    lines = {
        (line["method"], line["size"], line["rank"], line["lr"])
        for table in TABLES.values()
        for line in summary(rows, table.methods, table.beside)
        if line["searched"]
    }
    assert lines
    for method, size, rank, lr in lines:
        tried = {
            on_grid(r["lr"]): math.inf if r["eval_loss"] is None else r["eval_loss"]
            for r in rows
            if (r["method"], r["size"]) == (method, size)
            and rank in (None, r["rank"])
            and r["seed"] == SEARCH_SEED
            and r["steps"] == SIZES[size].steps
        }
        place = on_grid(lr)
        assert tried[place] <= min(tried[place - 1], tried[place + 1]), (method, size, rank)


def test_tables_name_methods_that_exist():
    assert METHODS.keys() >= WITHOUT_RANK
    for table in TABLES.values():
        assert set(table.methods) | set(table.beside) <= METHODS.keys()


def test_the_schedule_is_that_of_optax():
    ours = peak_to_schedule(0.3, 200)
    theirs = optax.warmup_cosine_decay_schedule(0.0, 0.3, 20, 200, 0.3 * MIN_LR_RATIO)
    counts = np.arange(0, 201, 7)
    np.testing.assert_allclose([ours(c) for c in counts], [theirs(c) for c in counts], rtol=1e-5)


@pytest.mark.parametrize("place", [-7, 0, 5])
def test_the_search_ends_in_a_valley_wherever_it_begins(place):
    losses = downhill(lambda lr: (on_grid(lr) - 3) ** 2, rate(place))
    assert min(losses, key=losses.get) == rate(3)
    assert {rate(2), rate(3), rate(4)} <= losses.keys()


def test_statistics_by_hand():
    difference, p, seeds = paired({0: 1.0, 1: 2.0, 2: 3.5}, {0: 1.5, 1: 2.25, 2: 4.5, 7: 0.0})
    assert (difference, seeds) == (pytest.approx(-7 / 12), 3)
    # t = mean / (sd / sqrt 3) = -2.6458; two degrees of freedom: p = 1 - t / sqrt(t^2 + 2)
    assert p == pytest.approx(1 - 2.6457513 / math.sqrt(7 + 2), rel=1e-5)
    assert holm([0.02, 0.5, 0.01]) == pytest.approx([0.04, 0.5, 0.03])


def test_a_line_of_a_table():
    rows = [row(seed=s, loss=2 + s / 10) for s in range(3)]
    rows += [row("galore", seed=s, loss=2.2 + s / 5) for s in range(3)]
    rows += [row("adamw", seed=s, loss=3.0, rank=16) for s in range(3)]  # the same at any rank
    rows += [row(seed=SEARCH_SEED, loss=1.5), row(seed=SEARCH_SEED, loss=1.7, lr=rate(1))]
    lines = summary(rows, ["galore", "adamw", "fira"], ["fira"])
    assert [line["method"] for line in lines] == ["fira", "galore", "adamw"]  # the best first
    fira, galore, adamw = lines
    assert fira["eval_loss"] == pytest.approx(2.1)
    assert fira["spread"] == pytest.approx(0.1)
    assert fira["rise_at_above"] == pytest.approx(0.2)
    assert fira["percent_beside_fira"] is None
    assert galore["percent_beside_fira"] == pytest.approx(100 * (math.exp(0.3) - 1))
    assert adamw["rank"] is None
    by_fira = {s: 2 + s / 10 for s in range(3)}
    larger = paired({s: 2.2 + s / 5 for s in range(3)}, by_fira)[1]
    smaller = paired(dict.fromkeys(range(3), 3.0), by_fira)[1]
    corrected = holm([smaller, larger])
    assert [adamw["p_beside_fira"], galore["p_beside_fira"]] == pytest.approx(corrected)
    assert adamw["p_beside_fira"] == pytest.approx(2 * smaller)


def test_a_search_is_complete_between_two_that_are_worse():
    rows = [row(seed=SEARCH_SEED, lr=rate(k), loss=2 + abs(k) / 10) for k in (-1, 0, 1)]
    (line,) = searches(rows)
    assert (line["lr"], line["tried"], line["rise_at_above"]) == (rate(0), 3, pytest.approx(0.1))
    assert searches(rows[1:]) == []  # there may be a better one below
    assert searches([r | {"seed": 0} for r in rows]) == []


def test_a_campaign_goes_on_where_it_stopped(tmp_path, monkeypatch):
    trained = []

    def train(run: Run) -> dict:
        trained.append(run)
        loss = 2 + abs(on_grid(run.lr) - 1) / 10
        return row(run.method, run.seed, loss, run.lr, run.steps, run.rank)

    monkeypatch.setattr(campaigns, "train", train)
    output = tmp_path / "results.json"
    with pytest.raises(OutOfTimeError):
        Campaign(Store(output), hours=-1).table(["fira"], "200k", [8], range(2))
    assert not trained
    Campaign(Store(output), hours=1).table(["fira", "adamw"], "200k", [8], range(2))
    seeds = [(r.method, r.lr) for r in trained if r.seed != SEARCH_SEED]
    assert seeds == [("fira", rate(1)), ("adamw", rate(1))] * 2
    assert {r.steps for r in trained if r.seed == SEARCH_SEED} == {SIZES["200k"].steps}
    before = list(trained)
    Campaign(Store(output), hours=-1).table(["fira", "adamw"], "200k", [8], range(2))
    assert trained == before
    Campaign(Store(tmp_path / "new.json"), 1, [row(lr=0.5)]).table(["fira"], "200k", [8], [0])
    assert trained[len(before) :] == [Run("fira", "200k", 8, 0, 0.5, 250)]  # a published rate

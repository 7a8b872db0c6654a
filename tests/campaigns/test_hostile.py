"""A sample of the hostile campaign; the last full one is in docs/results/hostile.json."""

from __future__ import annotations

import hostile
import numpy as np
import optax
from hostile_cases import Structure


def test_every_case_works_or_is_refused():
    results = hostile.campaign(cases=160, per_structure=40, seed=1)
    assert results["failures"] == []
    assert results["outcomes"]["works"] > 80
    assert results["outcomes"]["refused"] > 25


def test_verdicts_can_be_bad():
    """An optimizer that lets NaN through is found out."""
    adam = Structure(optax.scale_by_adam(), {"w": np.ones((3, 4), np.float32)}, 2, "Adam")
    run = hostile.walk(adam)
    grads = {"w": np.ones((9, 3, 4), np.float32)}
    assert hostile.judge_history(adam, run, grads) == ("works", "")
    grads["w"][4, 0, 0] = np.nan
    assert hostile.judge_history(adam, run, grads)[0] == "not finite"
    grads["w"][:] = 0
    assert hostile.judge_history(adam, run, grads)[0] == "dead"


def test_a_case_that_takes_too_long_is_hung_and_the_campaign_goes_on():
    results = hostile.campaign(cases=2, per_structure=1, timeout=0.01)
    assert results["outcomes"] == {"hung": 2}

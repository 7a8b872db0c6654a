"""The table of mutants fits the source as it stands."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutants import MUTANTS

import fira_jax

SOURCE = Path(fira_jax.__file__).parent
TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.why)
def test_mutant_applies(mutant):
    source = (SOURCE / mutant.file).read_text()
    assert source.count(mutant.old) == 1
    assert mutant.new != mutant.old
    compile(source.replace(mutant.old, mutant.new), mutant.file, "exec")
    assert all((TESTS / name).exists() for name in mutant.tests)


def test_there_are_enough_and_each_is_told_apart():
    assert len({mutant.why for mutant in MUTANTS}) == len(MUTANTS) >= 30

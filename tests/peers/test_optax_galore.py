"""Our GaLore set up like ``optax.contrib.galore`` gives its trajectory."""

import pytest

from tests.peers.parity import TOLERANCE, compare_optax

FEW = ("wide", "tall", "not projected")


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("alpha", [1.0, 0.25])
def test_trajectory(alpha, weight_decay):
    gaps = compare_optax(alpha, weight_decay)
    assert max(gaps.values()) <= TOLERANCE["float32"], gaps


def test_defaults_differ_as_documented():
    """Optax compresses the long side, adds ε = 1e-8 to the corrected root and has α = 1."""
    gaps = compare_optax(1.0, ours_as_released=True, layers=FEW)
    assert gaps["not projected"] < 1e-2
    assert gaps["wide"] > 0.1
    assert gaps["tall"] > 0.1

"""Our GaLore beside the released PyTorch package ``galore-torch``."""

import pytest

from tests.peers.parity import (
    FEW_LAYERS,
    TOLERANCE,
    TOLERANCE_CLOSED_LOOP,
    TOLERANCE_WEIGHT_DECAY,
    closed_loop,
    compare,
)


def assert_within(gaps: dict[str, float], tolerance: float) -> None:
    assert max(gaps.values()) <= tolerance, gaps


@pytest.mark.parametrize("alpha", [1.0, 0.25])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_trajectory(dtype, alpha):
    assert_within(compare("galore", alpha, dtype=dtype).gaps, TOLERANCE[dtype])


@pytest.mark.parametrize("alpha", [1.0, 0.25])
def test_trajectory_in_bfloat16(alpha):
    comparison = compare("galore", alpha, dtype="bfloat16", layers=FEW_LAYERS)
    assert_within(comparison.gaps, TOLERANCE["bfloat16"])


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("alpha", [1.0, 0.25])
def test_trajectory_without_bias_correction(alpha, weight_decay):
    comparison = compare("galore", alpha, weight_decay, correct_bias=False, layers=FEW_LAYERS)
    assert_within(comparison.gaps, TOLERANCE_WEIGHT_DECAY if weight_decay else TOLERANCE["float32"])


@pytest.mark.parametrize("alpha", [1.0, 0.25])
def test_weight_decay_follows_optax(alpha):
    assert_within(compare("galore", alpha, 0.1).gaps, TOLERANCE_WEIGHT_DECAY)


def test_weight_decay_after_the_step_is_the_whole_difference():
    comparison = compare("galore", 0.25, 0.1, decay_after_step=True, dtype="float64")
    assert_within(comparison.gaps, TOLERANCE["float64"])


def test_closed_loop():
    assert_within(closed_loop("galore", 1.0), TOLERANCE_CLOSED_LOOP)

"""Our Fira beside the released PyTorch package ``fira``, on the same gradients, step by step."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fira_jax
from tests.peers import released
from tests.peers.parity import (
    FEW_LAYERS,
    TOLERANCE,
    TOLERANCE_CLOSED_LOOP,
    TOLERANCE_WEIGHT_DECAY,
    closed_loop,
    compare,
)
from tests.peers.problems import FULL_RANK, LAYERS, SPIKES, STEPS

PROJECTED = [name for name, layer in LAYERS.items() if layer.reduction]


def assert_within(gaps: dict[str, float], tolerance: float) -> None:
    assert max(gaps.values()) <= tolerance, gaps


@pytest.mark.parametrize("alpha", [1.0, 0.25])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_trajectory(dtype, alpha):
    assert_within(compare("fira", alpha, dtype=dtype).gaps, TOLERANCE[dtype])


@pytest.mark.parametrize("alpha", [1.0, 0.25])
def test_trajectory_in_bfloat16(alpha):
    comparison = compare("fira", alpha, dtype="bfloat16", layers=FEW_LAYERS)
    assert_within(comparison.gaps, TOLERANCE["bfloat16"])


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("alpha", [1.0, 0.25])
def test_trajectory_without_bias_correction(alpha, weight_decay):
    comparison = compare("fira", alpha, weight_decay, correct_bias=False, layers=FEW_LAYERS)
    assert_within(comparison.gaps, TOLERANCE_WEIGHT_DECAY if weight_decay else TOLERANCE["float32"])


@pytest.mark.parametrize("alpha", [1.0, 0.25])
def test_weight_decay_follows_optax(alpha):
    assert_within(compare("fira", alpha, 0.1).gaps, TOLERANCE_WEIGHT_DECAY)


def test_weight_decay_after_the_step_is_the_whole_difference():
    comparison = compare("fira", 0.25, 0.1, decay_after_step=True, dtype="float64")
    assert_within(comparison.gaps, TOLERANCE["float64"])


@pytest.mark.parametrize("alpha", [1.0, 0.25])
def test_closed_loop(alpha):
    assert_within(closed_loop("fira", alpha), TOLERANCE_CLOSED_LOOP)


@pytest.mark.parametrize("alpha", [1.0, 0.25])
def test_spikes_trip_the_limiter_alike(alpha):
    comparison = compare("fira", alpha)
    # At full rank and α = 1 the residual is rounding noise there and exactly zero here.
    for name in PROJECTED if alpha < 1 else sorted({*PROJECTED} - {*FULL_RANK}):
        theirs, ours = comparison.theirs[name], comparison.ours[name]
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, err_msg=name)
        growth = theirs[1:] / theirs[:-1]
        tripped = np.vstack([np.zeros(theirs.shape[1], bool), np.isclose(growth, 1.01, rtol=1e-4)])
        assert growth.max() < 1.01 * (1 + 1e-4), name
        assert tripped[list(SPIKES)].any(axis=0).all(), name
        assert (tripped.sum(axis=0) < STEPS - 5).all(), name


def test_full_rank_has_no_residual():
    """What the released code adds there is rounding noise; ours adds nothing."""
    comparison = compare("fira", 1.0)
    for name in FULL_RANK:
        assert np.all(comparison.theirs[name] < 1e-4), name
        assert np.all(comparison.ours[name] == 0), name


def test_a_first_gradient_of_zero_kills_the_released_limiter_but_not_ours():
    grads = np.random.default_rng(0).standard_normal((20, 6, 10)).astype(np.float32)
    grads[0] = 0
    theirs = released.trajectory(
        "fira",
        [np.zeros((10, 6))],
        lambda step, _: [grads[step].T],
        steps=len(grads),
        schedule=lambda _: 0.01,
        rank=2,
        gap=200,
        alpha=1.0,
    )
    tx = fira_jax.fira(0.01, rank=2, scale=1.0, basis="svd")

    def step(state, grad):
        _, state = tx.update({"w": grad}, state, {"w": jnp.zeros((6, 10))})
        return state, optax.tree.get(state, "previous")["w"]

    _, ours = jax.lax.scan(step, tx.init({"w": jnp.zeros((6, 10))}), grads)
    assert theirs.limiter[0][-1] < 1e-6
    assert not math.isclose(float(ours[1]), 0)
    assert float(ours[-1]) > 1

"""PowerSGD and L-GreCo: formulas in float64, and what eight devices really send."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fira_jax.transforms import choose_options, choose_ranks, power_sgd_mean
from tests.xla_flags import xla_flags

RNG = np.random.default_rng(1)
DEVICES, M, N, RANK = 4, 6, 10, 2
GRADS = RNG.standard_normal((3, DEVICES, 2, M, N))  # steps, devices, a stack of two


def test_against_float64():
    tx = power_sgd_mean("devices", RANK)
    first = {"w": jnp.zeros((2, M, N))}
    state = jax.vmap(tx.init, axis_size=DEVICES, in_axes=None)(first)
    q = np.asarray(tx.init(first).factors["w"], np.float64)
    errors = np.zeros((DEVICES, 2, M, N))
    step = jax.jit(jax.vmap(tx.update, axis_name="devices"))
    for grads in GRADS:
        whole = grads + errors
        p, _ = np.linalg.qr((whole @ q).mean(0))
        q = (whole.swapaxes(-1, -2) @ p).mean(0)
        mean = p @ q.swapaxes(-1, -2)
        errors = whole - mean
        found, state = step({"w": jnp.asarray(grads, jnp.float32)}, state)
        for device in range(DEVICES):
            np.testing.assert_allclose(found["w"][device], mean, atol=1e-4)
        np.testing.assert_allclose(state.errors["w"], errors, atol=1e-4)


def test_what_is_lost_now_comes_later():
    """Of a constant gradient the mean of many steps is all that was to be sent."""
    grad = {"w": jnp.asarray(GRADS[0, :1, 0], jnp.float32)}
    tx = power_sgd_mean("devices", RANK)
    step = jax.jit(jax.vmap(tx.update, axis_name="devices"))
    state = jax.vmap(tx.init)(grad)
    total = 0.0
    for _ in range(60):
        sent, state = step(grad, state)
        total += sent["w"]
    gap = np.linalg.norm(total / 60 - grad["w"]) / np.linalg.norm(grad["w"])
    assert gap < 0.15
    once = np.linalg.norm(sent["w"] - grad["w"]) / np.linalg.norm(grad["w"])
    assert once > 0.4  # so it is not that each step sent all


def test_a_choice_is_the_best_of_all():
    rng = np.random.default_rng(2)
    sizes = np.sort(rng.integers(1, 50, (4, 5)), axis=1)[:, ::-1]
    errors = np.sort(rng.integers(0, 40, (4, 5)), axis=1)
    every = list(itertools.product(range(5), repeat=4))
    for budget in (errors[:, 0].sum(), 30, 60, 120, 200):
        fitting = [c for c in every if sum(errors[i, k] for i, k in enumerate(c)) <= budget]
        if not fitting:
            continue
        best = min(sum(sizes[i, k] for i, k in enumerate(c)) for c in fitting)
        # As many steps as the budget has units: then nothing is rounded.
        chosen = choose_options(sizes, errors, budget, resolution=int(budget) or 1)
        assert sum(errors[i, k] for i, k in enumerate(chosen)) <= budget
        assert sum(sizes[i, k] for i, k in enumerate(chosen)) == best


def test_ranks_send_less_and_err_no_more():
    decays = {"flat": 0.0, "middle": 0.5, "steep": 2.0}
    gradients = {}
    for name, decay in decays.items():
        left, _ = np.linalg.qr(RNG.standard_normal((32, 16)))
        right, _ = np.linalg.qr(RNG.standard_normal((48, 16)))
        gradients[name] = (left * np.arange(1.0, 17.0) ** -decay) @ right.T
    ranks = choose_ranks(gradients, range(1, 17), uniform_rank=8)

    def error(name, rank):
        values = np.linalg.svd(gradients[name], compute_uv=False)
        return np.sqrt(np.sum(values[rank:] ** 2))

    assert sum(ranks.values()) < 8 * 3
    assert sum(error(n, r) for n, r in ranks.items()) <= sum(error(n, 8) for n in ranks) + 1e-9
    assert ranks["steep"] < ranks["flat"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: power_sgd_mean("d", 0), "rank must be at least 1"),
        (lambda: power_sgd_mean("d", {"v": 2}).init({"w": jnp.ones((9, 9))}), "which is no param"),
        (lambda: choose_options([[1]], [[2]], 1), "no choice"),
        (lambda: choose_ranks({"w": np.eye(3)}, [0], 1), "at least 1"),
        (lambda: choose_ranks({"w": np.eye(3)}, [1], 1, slack=0.5), "slack"),
    ],
)
def test_impossible_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bytes_on_the_wire_of_eight_devices():
    """Of the compiled program: all-reduces of two thin factors instead of the gradient."""
    environment = os.environ | {
        "XLA_FLAGS": xla_flags("--xla_force_host_platform_device_count=8"),
        "JAX_PLATFORMS": "cpu",
    }
    script = Path(__file__).with_name("power_sgd_on_eight_devices.py")
    out = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert out.returncode == 0, out.stderr[-2000:]
    sent = json.loads(out.stdout)
    assert sent["whole"] == 4 * (2 * 64 * 96 + 32)
    assert sent["rank 4"] == 4 * (2 * 4 * (64 + 96) + 32)
    assert sent["disagreement"] == 0

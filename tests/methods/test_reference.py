"""The whole walk against its published formulas in NumPy float64."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from reference import Reference
from support import normal, run

import fira_jax

SHAPES = {"tall": (9, 5), "wide": (5, 9), "square": (6, 6), "row": (1, 7), "vector": (4,)}
STEPS, GAP, RANK, LEARNING_RATE = 8, 3, 3, 0.1

BETAS = {"b1": 0.5, "b2": 0.8, "eps": 0.1, "gamma": 1.2}
PAPER = {"form": "paper", "bias_correction": "inside", "granularity": "matrix"}
NO_RESIDUAL = {"residual": False}
CASES = {
    "fira": (fira_jax.fira, {}, {}),
    "fira_full_scale": (
        fira_jax.fira,
        {"scale": 1.0, "weight_decay": 0.1},
        {"alpha": 1.0, "weight_decay": 0.1},
    ),
    "fira_paper": (fira_jax.fira, {"form": "paper", "granularity": "matrix"}, PAPER),
    "fira_long": (fira_jax.fira, {"side": "long", **BETAS}, {"side": "long", **BETAS}),
    "fira_carry": (
        fira_jax.fira,
        {"moments": "carry", "gamma": None},
        {"carry": True, "gamma": None},
    ),
    "galore": (fira_jax.galore, {"weight_decay": 0.1}, {**NO_RESIDUAL, "weight_decay": 0.1}),
    "galore_uncorrected": (
        fira_jax.galore,
        {"bias_correction": False, "moments": "carry", "side": "long"},
        {**NO_RESIDUAL, "bias_correction": "none", "carry": True, "side": "long"},
    ),
}


def gradients(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Ordinary gradients with a spike, so that the limiter trips."""
    grads = normal(seed, STEPS, *shape, dtype=np.float64)
    grads[4] *= 5
    return grads


@pytest.mark.parametrize("case", CASES)
def test_walk_equals_its_formulas(case):
    method, ours, theirs = CASES[case]
    with jax.enable_x64(True):
        grads = {name: gradients(i, shape) for i, (name, shape) in enumerate(SHAPES.items())}
        grads["wide"][0] = 0  # a first gradient of zero must not hold the residual back
        params = {name: normal(7, *shape, dtype=np.float64) for name, shape in SHAPES.items()}
        tx = method(LEARNING_RATE, rank=RANK, update_proj_gap=GAP, basis="svd", **ours)
        updates, _ = run(tx, grads, params)

    for name, start in params.items():
        options = {"alpha": 0.25, **theirs, "learning_rate": LEARNING_RATE}
        if start.ndim == 1:  # Adam at full size: as a row its subspace is everything
            options |= {"alpha": 1.0, "residual": False, "side": "short"}
        reference = Reference(rank=RANK, gap=GAP, **options)
        weight = np.atleast_2d(start)
        for t in range(STEPS):
            update = reference.step(weight, np.atleast_2d(grads[name][t]))
            np.testing.assert_allclose(
                np.atleast_2d(updates[name][t]),
                update,
                rtol=1e-6,
                atol=1e-7,  # of updates of about 0.1: the limiter's state is float32
                err_msg=f"{name}, step {t}",
            )
            weight = weight + update

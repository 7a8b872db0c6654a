"""RACS against its published steps in NumPy float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import history, normal

import fira_jax

STEPS, RATE = 6, 0.1


def reference(grads, rounds=5, beta=0.9, alpha=0.05, gamma=1.01):
    """Gradients ``[out, in]``."""
    s_mean = q_mean = previous = 0.0
    for grad in grads:
        q = np.ones(grad.shape[0])
        for _ in range(rounds):
            s = (grad**2).T @ q / (q @ q)
            q = grad**2 @ s / (s @ s)
        s_mean, q_mean = beta * s_mean + (1 - beta) * s, beta * q_mean + (1 - beta) * q
        update = grad / np.sqrt(np.outer(q_mean, s_mean))
        norm = np.linalg.norm(update)
        if gamma is not None and previous > 0:
            update = update / (max(norm / (previous + 1e-8), gamma) / gamma)
        previous = np.linalg.norm(update)
        yield -RATE * alpha * update


@pytest.mark.parametrize(("rounds", "gamma"), [(5, 1.01), (1, None)])
def test_steps_are_the_published_ones(rounds, gamma):
    with jax.enable_x64(True):
        grads = normal(0, STEPS, 2, 7, 5, dtype=np.float64)
        grads[3] *= 20  # trips the limiter
        numbers = fira_jax.match_paths()
        tx = fira_jax.racs(RATE, rounds=rounds, gamma=gamma, weight_dimension_numbers=numbers)
        updates, _ = history(tx, {"w": grads}, {"w": grads[0]})
    for layer in range(2):
        expected = reference(grads[:, layer].swapaxes(1, 2), rounds=rounds, gamma=gamma)
        for t, update in enumerate(expected):
            np.testing.assert_allclose(updates["w"][t, layer], update.T, rtol=1e-9)


@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_gradients_of_any_size_in_float32(size):
    grads = normal(1, STEPS, 7, 5)
    tx = fira_jax.racs(RATE)
    (updates, _), (resized, _) = (
        history(tx, g, grads[0]) for g in (grads, grads * np.float32(size))
    )
    np.testing.assert_allclose(resized, updates, rtol=1e-4)


@pytest.mark.parametrize("unusable", [0.0, np.nan, np.inf])
def test_unusable_gradients_and_silent_rows(unusable):
    grads = normal(2, STEPS, 7, 5)
    grads[:, 2] = 0
    grads[1] = unusable
    grads[4, 0, 0] = unusable
    updates, states = history(fira_jax.racs(RATE), grads, grads[0])
    assert np.isfinite(updates).all()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(states))
    assert not updates[1].any()
    for x in states[0].matrices[0]:  # sizes stay as they were
        np.testing.assert_array_equal(x[1], x[0])
    assert (updates[5] != 0).any()
    assert not updates[:, 2].any()


def test_state_elements():
    state = jax.eval_shape(fira_jax.racs(RATE).init, jax.ShapeDtypeStruct((7, 5), jnp.float32))
    adams_counter = 1
    assert sum(x.size for x in jax.tree.leaves(state)) == 7 + 5 + 1 + adams_counter

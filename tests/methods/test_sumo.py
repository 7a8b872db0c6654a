"""SUMO beside its published steps in NumPy float64, and what it promises."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import normal, run

import fira_jax

STEPS, RANK, GAP, RATE = 8, 3, 3, 0.1


def leading(grad):
    vectors = np.linalg.svd(grad)[0][:, :RANK]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(0)[None], 0)
    return vectors * np.sign(largest)


def sumo(grads, *, alpha=1.0, mu=0.95, gamma=1.1, rest=1.0, decay=0.0, weight=0.0):
    """The steps for gradients ``[a, b]`` compressed along ``a``."""
    basis, moment, before = None, 0.0, None
    long = max(grads.shape[1:])
    for t, grad in enumerate(grads):
        if t % GAP == 0:
            old, basis = basis, leading(grad)
            if old is not None:
                moment = basis.T @ old @ moment
        raw = basis.T @ grad
        moment = mu * moment + (1 - mu) * raw
        u, s, vt = np.linalg.svd(moment, full_matrices=False)
        step = 0.2 * np.sqrt(long) * (u * (s > 1e-10 * s[0])) @ vt
        norm = np.linalg.norm(step)
        if before is not None and norm > gamma * (before + 1e-8):
            step *= gamma * (before + 1e-8) / norm
        before = np.linalg.norm(step)
        update = alpha * (basis @ step + rest * (grad - basis @ raw))
        update = -RATE * (update + decay * weight)
        weight = weight + update
        yield update


def adam_only(grads):
    m = v = 0.0
    for t, grad in enumerate(grads, start=1):
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        yield -RATE * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)


def gradients():
    small = normal(3, STEPS, 3, 7, dtype=np.float64)
    small[0, 2] = small[0, 0] - small[0, 1]  # of rank 2: the next step would be larger
    wide, tall, vector = normal(0, STEPS, 6, 9), normal(1, STEPS, 8, 5), normal(2, STEPS, 4)
    return {"wide": wide, "tall": tall, "small": small, "vector": vector}


@pytest.mark.parametrize(
    ("options", "reference"),
    [
        ({}, {}),
        ({"scale": 0.25, "momentum": 0.9, "gamma": None}, {"alpha": 0.25, "mu": 0.9, "gamma": 1e9}),
        ({"residual_scale": None, "weight_decay": 0.1}, {"rest": 0.0, "decay": 0.1}),
    ],
)
def test_sumo_takes_the_published_steps(options, reference):
    grads = {k: x.astype(np.float64) for k, x in gradients().items()}
    with jax.enable_x64(True):
        tx = fira_jax.sumo(RATE, RANK, GAP, basis="svd", **options)
        params = jax.tree.map(lambda g: jnp.ones_like(g[0]), grads)
        updates, _ = run(tx, jax.tree.map(jnp.asarray, grads), params)
    for name in ("wide", "small"):
        expected = list(sumo(grads[name], weight=1.0, **reference))
        np.testing.assert_allclose(updates[name], expected, rtol=1e-8, atol=1e-10)
    expected = [x.T for x in sumo(grads["tall"].transpose(0, 2, 1), weight=1.0, **reference)]
    np.testing.assert_allclose(updates["tall"], expected, rtol=1e-8, atol=1e-10)
    if "weight_decay" not in options:
        expected = list(adam_only(grads["vector"]))
        np.testing.assert_allclose(updates["vector"], expected, rtol=1e-8, atol=1e-10)


def test_the_limiter_held_something_back():
    grads = gradients()["small"].astype(np.float64)
    free, held = (list(sumo(grads, gamma=gamma, rest=0.0)) for gamma in (1e9, 1.1))
    assert np.linalg.norm(free[1]) > 1.1 * np.linalg.norm(held[1])


def test_all_directions_of_a_step_weigh_the_same():
    grads = {"w": normal(3, 1, 8, 12)}
    updates, _ = run(fira_jax.sumo(1.0, 4, residual_scale=None, size="none"), grads)
    values = np.linalg.svd(updates["w"][0], compute_uv=False)
    np.testing.assert_allclose(values, [1] * 4 + [0] * 4, atol=1e-5)


def test_state_is_a_basis_a_momentum_and_a_norm():
    params = {"w": jax.ShapeDtypeStruct((6, 9), jnp.float32), "b": jnp.ones(4)}
    rows = {row.path: row for row in fira_jax.describe(fira_jax.sumo(RATE, RANK), params).rows}
    assert rows["w"].state_bytes == 4 * (6 * RANK + 9 * RANK + 1)
    assert rows["b"].state_bytes == 4 * (2 * 4)


def test_a_zero_gradient_moves_nothing_and_stays_silent():
    grads = {"w": np.zeros((3, 6, 8), np.float32)}
    with jax.debug_nans(True):
        updates, state = run(fira_jax.sumo(RATE, 2), grads)
    assert not np.any(updates["w"])
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(state))


def test_another_optimizer_inside_and_one_elsewhere():
    grads = {"w": normal(4, 1, 6, 8), "b": normal(5, 1, 8)}
    tx = fira_jax.sumo(
        1.0,
        6,
        base_optimizer=optax.scale_by_sign(),
        elsewhere=optax.identity(),
        basis="svd",
        size="none",
        moments="keep",
    )
    updates, _ = run(tx, grads)
    basis = np.linalg.svd(grads["w"][0])[0]
    basis *= np.sign(np.take_along_axis(basis, np.abs(basis).argmax(0)[None], 0))
    u, _, vt = np.linalg.svd(np.sign(basis.T @ grads["w"][0]), full_matrices=False)
    np.testing.assert_allclose(updates["w"][0], -basis @ u @ vt, atol=1e-4)
    np.testing.assert_allclose(updates["b"][0], -grads["b"][0], rtol=1e-6)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="factor must be one of"):
        fira_jax.sumo(RATE, factor="qr")
    with pytest.raises(ValueError, match="size must be one of"):
        fira_jax.sumo(RATE, size="large")
    tx = fira_jax.sumo(RATE, base_optimizer=optax.scale_by_rprop(0.1))
    with pytest.raises(ValueError, match="how ScaleByRpropState turns with the basis"):
        tx.init({"w": jnp.ones((6, 8))})

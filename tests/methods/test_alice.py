"""Alice against its published steps in NumPy float64; its basis against what it promises."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import history, normal, with_spectrum

import fira_jax
from fira_jax.basis import Svd, Switching

STEPS, GAP, RANK, LEADING, RATE = 7, 3, 4, 2, 0.1
B1, B2, B3 = 0.9, 0.9, 0.9


def canonical(vectors):
    largest = np.abs(vectors).argmax(0)
    return vectors * np.sign(vectors[largest, np.arange(vectors.shape[1])])


def reference(grads, bases, b3, alpha=0.3, weight=0.4, gamma=1.01, eps=1e-8):
    """With the bases of the run: their random part cannot be foretold, the other is checked."""
    a, r = bases.shape[1:]
    m = v = p = covariance = previous = 0.0
    for t, grad in enumerate(grads):
        basis = bases[t]
        if t > 0 and t % GAP == 0:
            before = bases[t - 1]
            whole = b3 * before @ (np.zeros((r, r)) + covariance) @ before.T
            whole = whole + (1 - b3) * grad @ grad.T
            span = np.linalg.qr(whole @ before)[0]
            values, rotation = np.linalg.eigh(span.T @ whole @ span)
            leading = canonical(span @ rotation[:, np.argsort(-values)[:LEADING]])
            np.testing.assert_allclose(basis[:, :LEADING], leading, atol=1e-4)
        raw = basis.T @ grad
        covariance = b3 * covariance + (1 - b3) * raw @ raw.T
        m, v = B1 * m + (1 - B1) * raw, B2 * v + (1 - B2) * raw**2
        rest = grad - basis @ raw
        p = B1 * p + (1 - B1) * (rest**2).sum(0)
        compensation = np.sqrt(a - r) * rest / np.sqrt(p)
        norm = np.linalg.norm(compensation)
        if previous > 0:
            compensation = compensation / (max(norm / (previous + 1e-8), gamma) / gamma)
        previous = np.linalg.norm(compensation)
        yield -RATE * alpha * (basis @ (m / (np.sqrt(v) + eps)) + weight * compensation)


@pytest.mark.parametrize("b3", [B3, 0.0])
def test_steps_are_the_published_ones(b3):
    shapes = {"wide": (6, 9), "tall": (10, 7)}
    with jax.enable_x64(True):
        grads = {
            k: normal(i, STEPS, *s, dtype=np.float64) for i, (k, s) in enumerate(shapes.items())
        }
        grads["wide"][4] *= 9  # trips the limiter
        tx = fira_jax.alice(RATE, RANK, GAP, b1=B1, b2=B2, basis=Switching(LEADING, b3))
        updates, states = history(tx, grads, {k: np.zeros(s) for k, s in shapes.items()})
    for name in shapes:
        series = grads[name] if name == "wide" else grads[name].swapaxes(1, 2)
        found = updates[name] if name == "wide" else updates[name].swapaxes(1, 2)
        stored = states[0].bases[name]
        bases = np.asarray(stored if b3 == 0 else stored[0])
        if b3:
            expected = 0.0
            for basis, grad in zip(bases, series, strict=True):
                raw = basis.T @ grad
                expected = b3 * expected + (1 - b3) * raw @ raw.T
            np.testing.assert_allclose(stored[1][-1], expected, rtol=1e-9)
        for t, update in enumerate(reference(series, bases, b3)):
            np.testing.assert_allclose(
                found[t], update, rtol=1e-5, atol=1e-7, err_msg=f"{name}, step {t}"
            )


@pytest.fixture(scope="module")
def find():
    basis = Switching(LEADING, 0.0, start=Svd())
    return jax.jit(lambda grad, old, key: basis.find(grad, old, RANK, key))


@pytest.mark.parametrize("size", [1e-15, 1.0, 1e15])
def test_keeps_the_leading_directions_and_draws_the_others(find, size):
    grad = with_spectrum(0, 12, 20, np.float32([9, 5, 0.1, 0.1, 0.1])) * np.float32(size)
    left = np.linalg.svd(grad / np.float32(size))[0][:, :LEADING]
    first = find(grad, jnp.zeros((12, RANK)), jax.random.key(0))
    found = [np.asarray(find(grad, first, jax.random.key(k))) for k in (1, 2)]
    for vectors in found:
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(RANK), atol=1e-5)
        np.testing.assert_allclose(abs(vectors[:, :LEADING].T @ left), np.eye(LEADING), atol=1e-3)
    drawn = [x[:, LEADING:] for x in found]
    assert np.linalg.norm(drawn[0].T @ drawn[1], 2) < 0.99  # others at every refresh
    outside = np.linalg.norm(drawn[0] - np.asarray(first) @ (np.asarray(first).T @ drawn[0]))
    assert outside > 0.5  # and not of the old subspace


@pytest.mark.parametrize("rank", [1, 2])
def test_gradients_that_lack_directions(find, rank):
    grad = with_spectrum(1, 12, 20, np.ones(rank, np.float32))
    vectors = find(grad, find(grad, jnp.zeros((12, RANK)), jax.random.key(0)), jax.random.key(1))
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(RANK), atol=1e-5)
    held = np.linalg.norm(vectors.T @ grad) / np.linalg.norm(grad)
    assert held > 0.999


@pytest.mark.parametrize(("b3", "r_squared"), [(0.999, 16), (0.0, 0)])
def test_state_elements(b3, r_squared):
    tx = fira_jax.alice(RATE, RANK, basis=Switching(decay=b3))
    state = jax.eval_shape(tx.init, jax.ShapeDtypeStruct((6, 9), jnp.float32))
    formula = 6 * RANK + 2 * 9 * RANK + 9 + r_squared + 1
    counters = 2
    assert sum(x.size for x in jax.tree.leaves(state)) == formula + counters


def test_errors():
    with pytest.raises(ValueError, match="leading must not be negative, got -1"):
        Switching(leading=-1)
    with pytest.raises(ValueError, match=r"decay must be at least 0 and below 1, got 1\.0"):
        Switching(decay=1.0)

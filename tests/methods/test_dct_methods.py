"""DCT-AdamW and Trion against their published steps in NumPy float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import history, normal

import fira_jax

STEPS, RANK, RATE = 6, 3, 0.1
SHAPES = {"wide": (6, 9), "tall": (8, 5), "vector": (4,)}


def cosines(a):
    """The orthonormal DCT-II, one vector a column."""
    i, j = np.mgrid[:a, :a]
    vectors = np.sqrt(2 / a) * np.cos(np.pi * j * (2 * i + 1) / (2 * a))
    vectors[:, 0] /= np.sqrt(2)
    return vectors


def choose(x, score):
    size = {"energy": np.square, "l1": np.abs}[score](cosines(len(x)).T @ x).sum(1)
    return np.sort(np.argsort(-size)[:RANK])


def adam(m, v, t, grad):
    m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
    return m, v, (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)


def dct_adamw(grads, gap, feedback, carry, score="energy"):
    m = v = error = 0.0
    indices, d = None, cosines(grads.shape[1])
    for t, grad in enumerate(grads, start=1):
        whole = grad + error
        before = indices
        if (t - 1) % gap == 0:
            indices = choose(whole, score)
            if carry and before is not None:
                stays = (indices[:, None] == before[None, :]).astype(float)
                m, v = stays @ m, stays @ v
        basis = d[:, indices]
        raw = basis.T @ whole
        if feedback:
            error = whole - basis @ raw
        m, v, direction = adam(m, v, t, raw)
        yield -RATE * basis @ direction


def trion(grads, outputs_over_inputs, mu=0.95):
    momentum, d = 0.0, cosines(grads.shape[1])
    for grad in grads:
        whole = momentum + grad
        basis = d[:, choose(whole, "energy")]
        raw = basis.T @ whole
        momentum = whole - (1 - mu) * basis @ raw
        x = raw / np.linalg.norm(raw)
        for _ in range(5):
            gram = x @ x.T
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
        yield -RATE * np.sqrt(max(1, outputs_over_inputs)) * basis @ x


def adam_only(grads):
    m = v = 0.0
    for t, grad in enumerate(grads, start=1):
        m, v, direction = adam(m, v, t, grad)
        yield -RATE * direction


def check(tx, reference, rtol=1e-8):
    with jax.enable_x64(True):
        grads = {
            k: normal(i, STEPS, *s, dtype=np.float64) for i, (k, s) in enumerate(SHAPES.items())
        }
        updates, _ = history(tx, grads, {k: np.zeros(s) for k, s in SHAPES.items()})
    for name, shape in SHAPES.items():
        turned = name == "tall"
        series = grads[name].swapaxes(1, 2) if turned else grads[name]
        expected = adam_only(series) if name == "vector" else reference(series, shape)
        for t, update in enumerate(expected):
            np.testing.assert_allclose(
                updates[name][t], update.T if turned else update, rtol=rtol, atol=1e-10,
                err_msg=f"{name}, step {t}",
            )  # fmt: skip


@pytest.mark.parametrize(
    ("gap", "feedback", "moments", "score"),
    [(1, False, "carry", "energy"), (2, True, "carry", "energy"), (1, True, "keep", "l1")],
)
def test_dct_adamw_takes_the_published_steps(gap, feedback, moments, score):
    tx = fira_jax.dct_adamw(
        RATE, RANK, gap, error_feedback=feedback, moments=moments,
        basis=fira_jax.basis.Dct(score=score),
    )  # fmt: skip
    check(tx, lambda grads, _: dct_adamw(grads, gap, feedback, moments == "carry", score))


def test_trion_takes_the_published_steps():
    check(
        fira_jax.trion(RATE, RANK),
        lambda grads, shape: trion(grads, shape[1] / shape[0]),
        rtol=1e-6,
    )


def test_error_feedback_survives_an_unusable_gradient():
    tx = fira_jax.dct_adamw(RATE, RANK, error_feedback=True)
    grads = normal(0, 4, 6, 9)
    hurt = np.insert(grads, 2, np.inf, axis=0)
    hurt[2, :, 1:] = 1.0
    _, states = history(tx, hurt, grads[0])
    error = np.asarray(states[0].error)
    np.testing.assert_array_equal(error[2], error[1])
    assert np.isfinite(error).all()
    assert (error[3] != error[2]).any()


@pytest.mark.parametrize(
    ("tx", "elements"),
    [
        (fira_jax.dct_adamw(RATE, RANK), RANK + 2 * 9 * RANK),
        (fira_jax.dct_adamw(RATE, RANK, error_feedback=True), RANK + 2 * 9 * RANK + 6 * 9),
        (fira_jax.trion(RATE, RANK), RANK + 6 * 9),
    ],
)
def test_state_elements(tx, elements):
    state = jax.eval_shape(tx.init, jax.ShapeDtypeStruct((6, 9), jnp.float32))
    counters = 2
    assert sum(x.size for x in jax.tree.leaves(state)) == elements + counters


def test_trion_leaves_the_rest_to_the_optimizer_it_is_given():
    tx = fira_jax.trion(RATE, RANK, elsewhere=optax.scale_by_sign())
    grads = {"w": jnp.ones((6, 9)), "b": jnp.arange(-2.0, 3.0)}
    updates, _ = jax.jit(tx.update)(grads, tx.init(grads), grads)
    np.testing.assert_allclose(updates["b"], -RATE * np.sign(grads["b"]), rtol=1e-6)


def test_errors():
    with pytest.raises(ValueError, match="score must be one of 'energy', 'l1', got 'l2'"):
        fira_jax.basis.Dct(score="l2")
    tx = fira_jax.low_rank_project_with_feedback(fira_jax.LowRank(2))
    state = tx.init({"w": jnp.ones((4, 6))})
    with pytest.raises(ValueError, match=r"updates have 2 leaves .* initialized for 1"):
        tx.update({"w": jnp.ones((4, 6)), "b": jnp.ones(3)}, state)

"""FRUGAL against its published steps in NumPy float64, for every kind of subspace."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers
from support import history, normal

import fira_jax

STEPS, GAP, RANK, RATE = 7, 3, 2, 0.1
SHAPES = {"wide": (5, 9), "tall": (7, 4), "vector": (6,)}
BASES = ("svd", "orthonormal", "columns", "randk")


def adam(m, v, count, grad):
    m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
    return m, v, (m / (1 - 0.9**count)) / (np.sqrt(v / (1 - 0.999**count)) + 1e-8)


def reference(grads, down, up, rule, rule_scale, scale, projected=True):
    """The updates of one matrix; ``down`` and ``up`` take the step, since the basis changes."""
    m = v = 0.0
    for t, grad in enumerate(grads):
        if not projected:
            m, v, direction = adam(m, v, t + 1, grad)
            yield -RATE * direction
            continue
        if t % GAP == 0:  # the moments and the count of steps start anew
            m = v = 0.0
        raw = down(t, grad)
        m, v, direction = adam(m, v, t % GAP + 1, raw)
        rest = grad - up(t, raw)
        rest = {"sign": np.sign(rest), "sgd": rest, "none": 0 * rest}[rule]
        yield -RATE * scale * (up(t, direction) + rule_scale * rest)


def products(basis, stored, canonical):
    """``down`` and ``up`` with the bases that the run used."""
    if basis in ("svd", "orthonormal"):
        vectors = np.asarray(stored)
        return lambda t, g: vectors[t].T @ g, lambda t, x: vectors[t] @ x

    rows = jnp.broadcast_to(jnp.arange(canonical[0])[:, None], canonical)

    @jax.jit
    @jax.vmap
    def entries(at):
        return fira_jax.basis.RandK().vectors(at, canonical[0], RANK, None, None).project(rows)

    # The row of every chosen entry, [steps, r, b].
    if basis == "randk":
        chosen = np.asarray(entries(stored))
    else:
        chosen = np.broadcast_to(np.asarray(stored)[..., None], (STEPS, RANK, canonical[1]))

    def up(t, x):
        out = np.zeros(canonical)
        np.put_along_axis(out, chosen[t], x, axis=0)
        return out

    return lambda t, g: np.take_along_axis(g, chosen[t], axis=0), up


@pytest.mark.parametrize(
    ("basis", "rule"), [(basis, "sign") for basis in BASES] + [("svd", "sgd"), ("columns", "none")]
)
def test_steps_are_the_published_ones(basis, rule):
    scale, rule_scale = 0.5, 0.3
    with jax.enable_x64(True):
        grads = {
            k: normal(i, STEPS, *s, dtype=np.float64) for i, (k, s) in enumerate(SHAPES.items())
        }
        params = {k: np.zeros(s) for k, s in SHAPES.items()}
        tx = fira_jax.frugal(RATE, RANK, GAP, scale, basis=basis, rule=rule, rule_scale=rule_scale)
        updates, states = history(tx, grads, params)
    for name, shape in SHAPES.items():
        turned = len(shape) == 2 and shape[0] > shape[1]
        series = grads[name].swapaxes(1, 2) if turned else grads[name]
        down, up = (None, None)
        if len(shape) == 2:
            down, up = products(basis, states[0].bases[name], series.shape[1:])
        expected = reference(series, down, up, rule, rule_scale, scale, len(shape) == 2)
        for t, update in enumerate(expected):
            np.testing.assert_allclose(
                updates[name][t], update.T if turned else update, rtol=1e-9, atol=1e-11,
                err_msg=f"{name}, step {t}",
            )  # fmt: skip


def test_bases_change_at_a_refresh_and_only_then():
    grads, params = {"w": normal(0, STEPS, 9, 40)}, {"w": np.zeros((9, 40), np.float32)}
    _, states = history(fira_jax.frugal(RATE, 4, GAP), grads, params)
    rows = np.asarray(states[0].bases["w"])
    changed = [bool((rows[t] != rows[t - 1]).any()) for t in range(1, STEPS)]
    assert changed == [t % GAP == 0 for t in range(1, STEPS)]


def test_layers_take_turns():
    """Blockwise: two of five layers get Adam, the others the sign of their gradient."""
    tx = fira_jax.frugal(RATE, 2, GAP, weight_dimension_numbers=MuonDimensionNumbers(0, (1, 2)))
    grads = normal(1, STEPS, 5, 3, 4)
    updates, states = history(tx, grads, np.zeros((5, 3, 4), np.float32))
    assert states[1].mu.shape == (STEPS, 2, 12)
    active = np.asarray(states[0].bases)
    for t in range(STEPS):
        inactive = np.setdiff1d(np.arange(5), active[t])
        np.testing.assert_allclose(updates[t, inactive], -RATE * np.sign(grads[t, inactive]))
    # The first step of Adam after a refresh has the size of the learning rate, too.
    np.testing.assert_allclose(
        updates[3, active[3]], -RATE * np.sign(grads[3, active[3]]), rtol=1e-5
    )
    assert (abs(updates[4, active[4]]) < 0.999 * RATE).any()


@pytest.mark.parametrize(
    ("basis", "elements"),
    [("svd", "ar + 2br"), ("columns", "r + 2br"), ("randk", "r + 1 + 2br")],
)
def test_state_elements(basis, elements):
    a, b, r = 8, 12, 2
    state = jax.eval_shape(
        fira_jax.frugal(RATE, 0.25, basis=basis).init, jax.ShapeDtypeStruct((b, a), jnp.float32)
    )
    formula = {"ar + 2br": a * r, "r + 2br": r, "r + 1 + 2br": r + 1}[elements] + 2 * b * r
    counters = 2
    assert sum(x.size for x in jax.tree.leaves(state)) == formula + counters


def test_lion_inside():
    tx = fira_jax.frugal(
        RATE, 2, base_optimizer=optax.scale_by_lion(0.9, 0.99), moments="keep", basis="columns"
    )
    grad = jnp.asarray(normal(2, 6, 8))
    updates, _ = jax.jit(tx.update)(grad, tx.init(grad), grad)
    np.testing.assert_allclose(updates, -RATE * np.sign(grad), rtol=1e-6)  # both parts are signs


def test_errors():
    with pytest.raises(ValueError, match="rule must be one of 'sign', 'sgd', 'none', got 'lion'"):
        fira_jax.frugal(RATE, rule="lion")
    with pytest.raises(ValueError, match="rule must be one of 'sign', 'sgd', got 'none'"):
        fira_jax.plain_residual("none")
    with pytest.raises(ValueError, match="moments='reset' needs fira_jax"):
        fira_jax.frugal(RATE, base_optimizer=optax.scale_by_lion())
    with pytest.raises(ValueError, match="moments='reset' needs refresh='fixed'"):
        fira_jax.LowRank(moments="reset", refresh="staggered")
    with pytest.raises(ValueError, match=r"moments='carry' needs a stored basis.*Haar"):
        fira_jax.LowRank(moments="carry", basis="haar")
    with pytest.raises(ValueError, match=r"moments='carry' needs .*all columns share.*RandK"):
        fira_jax.LowRank(moments="carry", basis="randk")
    for share in (1.0, 1.5, 0.0, -0.5, float("nan")):
        with pytest.raises((TypeError, ValueError), match="rank must be"):
            fira_jax.LowRank(share)
    with pytest.raises(ValueError, match=r"'w' with shape \(6, 9\).*side of 6 .* into 4 pieces"):
        fira_jax.low_rank_project(fira_jax.LowRank(2, pieces=4)).init({"w": jnp.ones((6, 9))})

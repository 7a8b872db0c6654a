"""LoRA-Pro beside NumPy float64 in the paper's (out, in) layout, and what it promises."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import normal, run

import fira_jax

S, STEPS = 2.0, 4


def reference(a, b, grad_a, grad_b, s=S):
    """Weight s B A with B [out, r], A [r, in]; Sylvester's equation as one linear system."""
    r = len(a)
    if not b.any():
        return grad_a, grad_b @ np.linalg.inv(a @ a.T) / s**2
    inverse_b, inverse_a = np.linalg.inv(b.T @ b), np.linalg.inv(a @ a.T)
    system = np.kron(b.T @ b, np.eye(r)) + np.kron(np.eye(r), a @ a.T)
    x = np.linalg.solve(system, (-inverse_b @ grad_a @ a.T / s**2).ravel()).reshape(r, r)
    outside = np.eye(len(b)) - b @ inverse_b @ b.T
    return (
        inverse_b @ grad_a / s**2 + x @ a,
        outside @ grad_b @ inverse_a / s**2 - b @ x,
    )


def adam(m, v, g, t):
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
    return m, v, (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)


def factors(zero=False):
    b = np.zeros((3, 7), np.float32) if zero else normal(1, 3, 7)
    return {"lora_a": normal(0, 9, 3), "lora_b": b}


def full_gradients():
    return normal(2, STEPS, 9, 7)


def to_factors(params, full):
    a, b = params["lora_a"], params["lora_b"]
    return {"lora_a": S * full @ b.T, "lora_b": S * a.T @ full}


def adjusted(params, full):
    tx = fira_jax.transforms.adjust_lora_gradients(S)
    return tx.update(to_factors(params, full), tx.init(params), params)[0]


@pytest.mark.parametrize("zero", [False, True])
def test_gradients_are_the_published_ones(zero):
    params, full = factors(zero), full_gradients()[0]
    got = adjusted(params, full)
    transposed = [x.T.astype(float) for x in params.values()]
    grads = [x.T.astype(float) for x in to_factors(params, full).values()]
    for name, expected in zip(params, reference(*transposed, *grads), strict=True):
        np.testing.assert_allclose(got[name], expected.T, rtol=1e-3, atol=1e-4)


def test_product_moves_along_the_projection_of_the_full_gradient():
    """And of all gradients that do, these are the nearest to LoRA's own."""
    params, full = factors(), full_gradients()[0].astype(float)
    a, b = (x.astype(float) for x in params.values())
    to_a, to_b = (np.asarray(x, float) for x in adjusted(params, full).values())
    onto_a, onto_b = (q @ q.T for q in (np.linalg.qr(a)[0], np.linalg.qr(b.T)[0]))
    tangent = onto_a @ full + (np.eye(9) - onto_a) @ full @ onto_b
    np.testing.assert_allclose(S * (to_a @ b + a @ to_b), tangent, atol=2e-4)

    plain = to_factors(params, full)

    def distance(to_a, to_b):
        return np.sum((to_a - plain["lora_a"]) ** 2) + np.sum((to_b - plain["lora_b"]) ** 2)

    for seed in range(5):
        shift = 0.01 * normal(seed, 3, 3)  # moves the factors, not their product
        assert distance(to_a, to_b) < distance(to_a + a @ shift, to_b - shift @ b)


@pytest.mark.parametrize("moments", ["full", "factors"])
def test_trajectory(moments):
    # Adam's first step on B = 0 would have two equal rows, on which inverses are not defined.
    params = {"q": factors(zero=moments == "full"), "bias": normal(5, 4)}
    full = full_gradients()
    tx = fira_jax.lora_pro(0.01, S, 0.1, moments=moments)
    update, state = jax.jit(tx.update), tx.init(params)
    a, b = (x.T.astype(float) for x in params["q"].values())
    size = 2 * 9 * 7 if moments == "full" else 2 * 3 * (9 + 7)
    assert sum(x.size for x in jax.tree.leaves(state)) == size + 2 * 4 + 1
    m, v = [0.0, 0.0], [0.0, 0.0]
    bias_m = bias_v = 0.0
    for t, g in enumerate(full, 1):
        grads = {"q": to_factors(params["q"], g), "bias": g[0, :4]}
        updates, state = update(grads, state, params)
        to_a, to_b = S * b.T @ g.T.astype(float), S * g.T @ a.T
        to_a, to_b = reference(a, b, to_a, to_b)
        if moments == "full":
            m[0], v[0], step = adam(m[0], v[0], S * b @ to_a + S * to_b @ a, t)
            to_a, to_b = reference(a, b, S * b.T @ step, S * step @ a.T)
        else:
            m[0], v[0], to_a = adam(m[0], v[0], to_a, t)
            m[1], v[1], to_b = adam(m[1], v[1], to_b, t)
        bias_m, bias_v, bias = adam(bias_m, bias_v, g[0, :4].astype(float), t)
        expected = (-0.01 * (to_a + 0.1 * a), -0.01 * (to_b + 0.1 * b))
        for name, x in zip(("lora_a", "lora_b"), expected, strict=True):
            got = np.asarray(updates["q"][name])
            np.testing.assert_allclose(got, x.T, rtol=5e-3, atol=5e-3 * np.abs(x).max())
        np.testing.assert_allclose(
            updates["bias"], -0.01 * (bias + 0.1 * np.asarray(params["bias"])), rtol=1e-4
        )
        params = jax.tree.map(np.asarray, optax.apply_updates(params, updates))
        a, b = (x.T.astype(float) for x in params["q"].values())


def test_stacked_factors_are_separate_ones():
    one, two = factors(), factors(zero=True)
    full = full_gradients()[:2]
    stacked = jax.tree.map(lambda *x: np.stack(x), one, two)
    grads = jax.tree.map(lambda *x: np.stack(x), to_factors(one, full[0]), to_factors(two, full[1]))
    tx = fira_jax.transforms.adjust_lora_gradients(S)
    got = tx.update(grads, tx.init(stacked), stacked)[0]
    for i, params in enumerate((one, two)):
        for name, expected in adjusted(params, full[i]).items():
            np.testing.assert_allclose(got[name][i], expected, rtol=1e-4, atol=1e-5)


def test_a_gradient_that_is_not_finite_leaves_no_trace():
    params = factors()
    grads = {name: normal(3, STEPS, *x.shape) for name, x in params.items()}
    spoilt = {name: g.copy() for name, g in grads.items()}
    spoilt["lora_b"][1, 0, 0] = np.nan
    for g in grads.values():
        g[1] = 0
    tx = fira_jax.lora_pro(0.01, S)
    for x, y in zip(
        jax.tree.leaves(run(tx, spoilt, params)),
        jax.tree.leaves(run(tx, grads, params)),
        strict=True,
    ):
        np.testing.assert_array_equal(x, y)
        assert np.isfinite(x).all()


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="moments must be one of 'full', 'factors', got 'half'"):
        fira_jax.lora_pro(0.1, S, moments="half")
    for tx in (fira_jax.transforms.adjust_lora_gradients(S), fira_jax.lora_pro(0.1, S)):
        with pytest.raises(ValueError, match="no pair of parameters ends in lora_a and lora_b: w"):
            tx.init({"w": jnp.ones((3, 4))})
        with pytest.raises(ValueError, match="'q/lora_a' has no partner 'q/lora_b'"):
            tx.init({"q": {"lora_a": jnp.ones((3, 4))}})
        with pytest.raises(ValueError, match=r"'q/lora_a' with shape \(3, 4\).*shape \(5, 6\)"):
            tx.init({"q": {"lora_a": jnp.ones((3, 4)), "lora_b": jnp.ones((5, 6))}})
        params = factors()
        with pytest.raises(ValueError, match="pass params to update"):
            tx.update(params, tx.init(params))

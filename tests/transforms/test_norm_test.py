"""The norm test, and AdAdaGrad's two forms, beside NumPy float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import normal, run

import fira_jax

SHAPES = {"w": (3, 4), "b": (5,)}


def example_gradients(count, noise):
    """Gradients of single examples around one direction, ``[count, ...]``."""
    return {
        name: normal(i, *shape) + noise * normal(i + 10, count, *shape)
        for i, (name, shape) in enumerate(SHAPES.items())
    }


def flat(tree):
    return np.concatenate(
        [np.asarray(tree[name], float).reshape(len(tree[name]), -1) for name in SHAPES], axis=1
    )


def variance_of(grads, examples_each):
    norms = jax.vmap(fira_jax.transforms.squared_norm)(jax.tree.map(jnp.asarray, grads))
    mean = jax.tree.map(lambda g: g.mean(axis=0), grads)
    return fira_jax.transforms.gradient_variance(norms, mean, examples_each)


def test_variance_of_single_examples_is_numpy_s():
    grads = example_gradients(20, noise=2.0)
    expected = flat(grads).var(axis=0, ddof=1).sum()
    np.testing.assert_allclose(variance_of(grads, 1), expected, rtol=1e-4)


def test_variance_from_micro_batches_is_that_of_examples_on_average():
    grads = example_gradients(4000, noise=2.0)
    micro = {name: g.reshape(1000, 4, *g.shape[1:]).mean(axis=1) for name, g in grads.items()}
    np.testing.assert_allclose(variance_of(micro, 4), variance_of(grads, 1), rtol=0.1)


def test_equal_micro_batches_have_no_variance():
    assert 0 <= float(variance_of(example_gradients(7, noise=0.0), 3)) < 1e-4


@pytest.mark.parametrize(
    ("noise", "maximum", "expected"),
    [(0.1, 1000, "same"), (5.0, 1000, "formula"), (5.0, 12, "maximum")],
)
def test_batch_grows_to_what_the_test_needs(noise, maximum, expected):
    grads = example_gradients(8, noise)
    mean = jax.tree.map(lambda g: g.mean(axis=0), grads)
    examples = flat(grads)
    sigma2, norm2 = examples.var(axis=0, ddof=1).sum(), (examples.mean(axis=0) ** 2).sum()
    passes = sigma2 / 8 <= 0.5**2 * norm2
    assert passes == (expected == "same")
    tx = fira_jax.transforms.adapt_batch_size(8, maximum, eta=0.5)
    updates, state = tx.update(mean, tx.init(mean), gradient_variance=variance_of(grads, 1))
    formula = int(np.ceil(sigma2 / (0.25 * norm2)))
    assert passes or 12 < formula < 1000
    sizes = {"same": 8, "formula": formula, "maximum": 12}
    assert int(state.batch_size) == sizes[expected]
    assert updates is mean


@pytest.mark.parametrize(
    ("size", "variance"), [(1e-8, 0.0), (0.0, 0.0), (0.0, 1.0), (np.nan, 1.0), (1.0, np.nan)]
)
def test_batch_neither_shrinks_nor_follows_nonsense(size, variance):
    tx = fira_jax.transforms.adapt_batch_size(8, 1000)
    state = fira_jax.transforms.AdaptBatchSizeState(jnp.int32(100))
    grads = jnp.full(3, size)
    _, state = tx.update(grads, state, gradient_variance=variance)
    assert int(state.batch_size) == 100


@pytest.mark.parametrize("granularity", ["entry", "model"])
def test_trajectory(granularity):
    grads = {name: normal(i, 4, *shape) for i, (name, shape) in enumerate(SHAPES.items())}
    tx = fira_jax.adadagrad(0.1, 4, 1000, 0.5, weight_decay=0.01, granularity=granularity)
    params = {name: normal(9, *shape) for name, shape in SHAPES.items()}
    fixed = optax.GradientTransformation(
        tx.init, lambda g, s, p: tx.update(g, s, p, gradient_variance=100.0)
    )
    got, state = run(fixed, grads, params)
    weight = flat(jax.tree.map(lambda x: x[None], params))[0]
    total, needed = 0.0, [4]
    for g, actual in zip(flat(grads), flat(got), strict=True):
        total = total + (g**2 if granularity == "entry" else (g**2).sum())
        expected = -0.1 * (g / np.sqrt(total) + 0.01 * weight)
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-6)
        weight = weight + actual
        needed.append(int(np.ceil(100 / (0.25 * (g**2).sum()))))
    assert int(optax.tree.get(state, "batch_size")) == max(needed) > 4
    elements = sum(x.size for x in jax.tree.leaves(state))
    assert elements == 1 + (weight.size if granularity == "entry" else 1)


def test_a_gradient_that_is_not_finite_leaves_no_trace():
    tx = fira_jax.transforms.scale_by_adagrad_norm()
    state = tx.init(jnp.zeros(2))
    _, state = tx.update(jnp.array([3.0, 4.0]), state)
    updates, after = tx.update(jnp.array([1.0, np.inf]), state)
    assert not updates.any()
    assert float(after.sum_of_squares) == float(state.sum_of_squares) == 25
    zero, _ = tx.update(jnp.zeros(2), tx.init(jnp.zeros(2)))
    assert not zero.any()


def test_mistakes_are_named():
    with pytest.raises(TypeError, match="initial must be an int, got 1"):
        fira_jax.transforms.adapt_batch_size(1.5, 8)
    with pytest.raises(ValueError, match="maximum must be at least initial = 8, got 4"):
        fira_jax.transforms.adapt_batch_size(8, 4)
    with pytest.raises(ValueError, match="eta must be above 0, got 0"):
        fira_jax.transforms.adapt_batch_size(8, 16, eta=0.0)
    with pytest.raises(ValueError, match="granularity must be one of 'entry', 'model', got 'row'"):
        fira_jax.adadagrad(0.1, 8, 16, granularity="row")
    with pytest.raises(ValueError, match="at least two micro-batches, got 1"):
        fira_jax.transforms.gradient_variance(jnp.ones(1), jnp.ones(3), 4)
    tx = fira_jax.adadagrad(0.1, 8, 16)
    with pytest.raises(ValueError, match="spread of the examples' gradients"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))

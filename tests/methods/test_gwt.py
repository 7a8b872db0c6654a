"""GWT against the released steps in NumPy float64, with the wavelet transform spelled out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import history, normal

import fira_jax

STEPS, RATE = 6, 0.1


def haar(x, level):
    """Along the last axis: ``[approximation, coarsest details, ..., finest details]``."""
    details = []
    for _ in range(level):
        even, odd = x[..., 0::2], x[..., 1::2]
        x = (even + odd) / np.sqrt(2)
        details.insert(0, (even - odd) / np.sqrt(2))
    return [x, *details]


def inverse_haar(coefficients):
    x, *details = coefficients
    for d in details:
        x = np.stack([x + d, x - d], axis=-1).reshape(*x.shape[:-1], -1) / np.sqrt(2)
    return x


def reference(grads, level, scale, gamma, b1=0.9, b2=0.999, eps=1e-6):
    """Gradients ``[out, in]``, transformed along the last axis."""
    m = v = previous = 0.0
    for t, grad in enumerate(grads, start=1):
        approximation, *details = haar(grad, level)
        m = b1 * m + (1 - b1) * approximation
        v = b2 * v + (1 - b2) * approximation**2
        divisor = np.sqrt(v) + eps
        direction, kappa = m / divisor, 1.0
        norm = np.linalg.norm(direction)
        if gamma is not None and previous > 0:
            kappa = max(norm / previous, gamma) / gamma
        previous = norm / kappa
        scaled = []
        for d in details:
            scaled.append(d / (divisor * kappa))
            divisor = np.repeat(divisor, 2, axis=-1)
        correction = np.sqrt(1 - b2**t) / (1 - b1**t)
        yield -RATE * correction * scale * inverse_haar([direction / kappa, *scaled])


@pytest.mark.parametrize(("level", "gamma"), [(1, None), (2, 1.01), (3, 1.01)])
def test_steps_are_the_released_ones(level, gamma):
    with jax.enable_x64(True):
        kernel = normal(level, STEPS, 16, 5, dtype=np.float64)  # 16 inputs, 5 outputs
        kernel[3] *= 30  # trips the limiter
        tx = fira_jax.gwt(RATE, 2.0**-level, gamma=gamma)
        updates, states = history(tx, {"w": kernel}, {"w": np.zeros((16, 5))})
    for t, update in enumerate(reference(kernel.swapaxes(1, 2), level, 0.25, gamma)):
        # The limiter's norm is float32.
        np.testing.assert_allclose(updates["w"][t], update.T, rtol=1e-6, atol=1e-9)
    assert states[1].mu["w"].shape == (STEPS, 16 >> level, 5)


def test_blocks_that_do_not_divide_the_matrix():
    """The last block, of two of ten rows, is a matrix of its own with a block as long as it."""
    grads = normal(0, STEPS, 10, 4)
    params = np.zeros((10, 4), np.float32)
    whole, _ = history(fira_jax.gwt(RATE, 0.25, gamma=None), grads, params)
    last, _ = history(fira_jax.gwt(RATE, 1, gamma=None), grads[:, 8:], params[8:])
    np.testing.assert_allclose(whole[:, 8:], last, rtol=2e-5)


def test_state_elements():
    state = jax.eval_shape(fira_jax.gwt(RATE).init, jax.ShapeDtypeStruct((16, 6), jnp.float32))
    counters = 2
    assert sum(x.size for x in jax.tree.leaves(state)) == 2 * 4 * 6 + 1 + counters


def test_limiter_on_the_subspace_part():
    low_rank = fira_jax.LowRank(2, 1)
    with pytest.raises(
        ValueError, match="watch must be one of 'residual', 'subspace', 'core', got 'all'"
    ):
        fira_jax.norm_growth_limit(low_rank, watch="all")
    tx = optax.chain(
        fira_jax.low_rank_project(low_rank),
        fira_jax.norm_growth_limit(low_rank, 1.5, watch="subspace"),
        fira_jax.project_back(),
    )
    grads = normal(0, 1, 6, 8) * np.float32([1, 9, 1, 0, 1]).reshape(-1, 1, 1)
    updates, _ = history(tx, grads, grads[0])
    norms = np.linalg.norm(updates, axis=(1, 2))
    expected = norms[0] * np.array([1, 1.5, 1, 0, 1])  # zero says nothing about the size
    np.testing.assert_allclose(norms, expected, rtol=1e-5)


def test_errors():
    with pytest.raises(ValueError, match="base_optimizer must be None"):
        fira_jax.gwt(RATE, base_optimizer=optax.scale_by_lion())
    grads = jnp.ones((4, 6))

    def update(basis, inner):
        low_rank = fira_jax.LowRank(2, basis=basis)
        residual = fira_jax.residual_over_denominator()
        tx = optax.chain(fira_jax.low_rank_project(low_rank), inner(low_rank), residual)
        return jax.eval_shape(tx.update, grads, jax.eval_shape(tx.init, grads))

    with pytest.raises(ValueError, match="needs basis='haar'"):
        update("columns", fira_jax.scale_by_adam_in_subspace)
    with pytest.raises(ValueError, match="needs an optimizer that tells what it divided by"):
        update("haar", lambda low_rank: fira_jax.in_subspace(low_rank, optax.scale_by_adam()))

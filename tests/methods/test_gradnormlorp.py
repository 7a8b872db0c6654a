"""GradNormLoRP as we read it, against NumPy float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import normal, run

import fira_jax

STEPS, GAP, RANK, RATE, DECAY = 5, 3, 2, 0.05, 0.1


def canonical(vectors):
    largest = np.abs(vectors).argmax(0)
    return vectors * np.sign(vectors[largest, np.arange(vectors.shape[1])])


def adam(m, v, t, grad, eps_outside):
    m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
    c1, c2 = 1 - 0.9**t, 1 - 0.999**t
    if eps_outside:  # of the cores: as released, epsilon on the uncorrected root
        return m, v, np.sqrt(c2) / c1 * m / (np.sqrt(v) + 1e-6)
    return m, v, (m / c1) / (np.sqrt(v / c2) + 1e-6)


def reference(weight, grads, scale=0.5):
    """Weights ``[in, out]``, normalized along the inputs."""
    m = v = mg = vg = 0.0
    for t, grad in enumerate(grads):
        length = np.linalg.norm(weight, axis=0)
        unit = weight / length
        grad_g = (grad * unit).sum(0)
        grad_v = grad - grad_g * unit
        if t % GAP == 0:
            left, _, right = np.linalg.svd(grad_v, full_matrices=False)
            # The second basis is of the first one's coordinates, whose signs are free.
            a, b = canonical(left[:, :RANK]), canonical(right[:RANK].T)
        m, v, core = adam(m, v, t + 1, a.T @ grad_v @ b, eps_outside=True)
        mg, vg, step_g = adam(mg, vg, t + 1, grad_g, eps_outside=False)
        ahead = weight - RATE * scale * a @ core @ b.T
        turned = (length - RATE * step_g) * ahead / np.linalg.norm(ahead, axis=0)
        update = turned - weight - RATE * DECAY * weight
        weight = weight + update
        yield update


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_steps_are_those_of_our_reading(shape):
    with jax.enable_x64(True):
        grads = {"w": normal(0, STEPS, *shape, dtype=np.float64), "b": normal(1, STEPS, 4)}
        params = {"w": normal(2, *shape, dtype=np.float64), "b": normal(3, 4)}
        tx = fira_jax.gradnormlorp(RATE, RANK, GAP, 0.5, weight_decay=DECAY, basis="svd")
        updates, _ = run(tx, grads, params)
    for t, update in enumerate(reference(params["w"], grads["w"])):
        np.testing.assert_allclose(updates["w"][t], update, rtol=1e-7, atol=1e-10)


def test_rounding_beside_the_diagonal_of_a_core_makes_no_step():
    """Adam's first step is the sign of what it is given, were it noise."""
    grads, params = {"w": normal(4, 1, 24, 32)}, {"w": normal(5, 24, 32)}
    core = fira_jax.gradnormlorp(RATE, 6, GAP, 0.5)
    updates, _ = run(core, grads, params)
    exact, _ = run_in_float64(core, grads, params)
    np.testing.assert_allclose(updates["w"], exact["w"], atol=5e-3 * np.abs(exact["w"]).max())


def run_in_float64(tx, grads, params):
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (grads, params))
        return run(tx, *wide)


@pytest.fixture(scope="module")
def normalized():
    """Stacked layers that move by their gradient, their magnitudes by a tenth of it."""
    low_rank = fira_jax.LowRank(RANK, weight_dimension_numbers=fira_jax.match_paths("w"))
    return fira_jax.transforms.weight_normalized(low_rank, 0.1, optax.identity(), optax.scale(0.1))


def test_a_small_step_is_the_gradient_turned_and_stretched(normalized):
    """To first order: the part across each column moves, the part along it by a tenth."""
    params = {"w": normal(0, 2, 5, 7), "b": normal(1, 3)}
    grads = jax.tree.map(lambda x: 1e-3 * x, {"w": normal(2, 2, 5, 7), "b": normal(3, 3)})
    updates, _ = jax.jit(normalized.update)(grads, normalized.init(params), params)
    unit = params["w"] / np.linalg.norm(params["w"], axis=1, keepdims=True)
    along = (grads["w"] * unit).sum(1, keepdims=True) * unit
    expected = -0.1 * (grads["w"] - along + 0.1 * along)
    np.testing.assert_allclose(updates["w"], expected, atol=2e-7)
    np.testing.assert_allclose(updates["b"], -0.1 * grads["b"], rtol=1e-6)


def test_silent_units_and_unusable_gradients(normalized):
    params = {"w": normal(0, 2, 5, 7)}
    params["w"][0, :, 2] = 0
    grads = {"w": normal(2, 2, 5, 7)}
    grads["w"][1, 3, 3] = np.inf
    updates, _ = jax.jit(normalized.update)(grads, normalized.init(params), params)
    np.testing.assert_allclose(updates["w"][0, :, 2], -0.1 * grads["w"][0, :, 2], rtol=1e-6)
    np.testing.assert_allclose(updates["w"][1], 0, atol=1e-6)


def test_state_elements():
    state = jax.eval_shape(
        fira_jax.gradnormlorp(RATE, RANK).init, jax.ShapeDtypeStruct((6, 9), jnp.float32)
    )
    sizes = [x.size for x in jax.tree.leaves(state) if x.ndim]
    assert sum(sizes) == 6 * RANK + 9 * RANK + 2 * RANK**2 + 2 * 9


def test_errors(normalized):
    grads = {"w": jnp.ones((4, 6))}
    with pytest.raises(ValueError, match="weight_normalized needs the parameters"):
        normalized.update(grads, normalized.init(grads))

"""SWAN, SinkGD and SCALE beside NumPy float64 in the papers' (out, in) layout; their pieces."""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from optax.contrib import MuonDimensionNumbers
from support import normal, run

import fira_jax

RATE, DECAY, STEPS = 0.02, 0.1, 3
METHODS = {"swan": fira_jax.swan, "sinkgd": fira_jax.sinkgd, "scale": fira_jax.scale_optimizer}
NUMBERS = {
    "tall": MuonDimensionNumbers(0, 1),
    "wide": MuonDimensionNumbers(0, 1),
    "head": MuonDimensionNumbers(0, 1),
    "stack": MuonDimensionNumbers(-2, -1),
    "attn": MuonDimensionNumbers(0, (1, 2)),  # (embed, heads, head_dim)
    "bias": None,
    "embed": None,
}
SHAPES = {
    "tall": (12, 5),
    "wide": (5, 12),
    "head": (6, 6),
    "stack": (2, 4, 9),
    "attn": (6, 2, 4),
    "bias": (7,),
    "embed": (4, 3),
}


def gradients():
    return {
        name: normal(i, STEPS, *shape) * 10.0 ** (i - 3)
        for i, (name, shape) in enumerate(SHAPES.items())
    }


# --- independent references: x is [out, in], as PyTorch has it ----------------------------------


def swan_reference(x, k=10, beta=0.8):
    x = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    size, flipped = math.sqrt(x.size), x.shape[0] > x.shape[1]
    x = x.T if flipped else x
    x = x / np.linalg.norm(x)
    y, z = x @ x.T, np.eye(x.shape[0])
    for _ in range(k):
        a = 3 * np.eye(x.shape[0]) - z @ y
        y, z = beta * y @ a, beta * a @ z
    delta = z @ x
    delta *= size / np.linalg.norm(delta)
    return 0.05 * (delta.T if flipped else delta)


def sinkgd_reference(x, rounds=5):
    m, n = x.shape
    for _ in range(rounds):
        for i in range(m):
            x[i] *= math.sqrt(n) / np.linalg.norm(x[i])
        for j in range(n):
            x[:, j] *= math.sqrt(m) / np.linalg.norm(x[:, j])
    return 0.05 * x


def scale_reference(x):
    return x / np.sqrt((x**2).mean(axis=1, keepdims=True))


REFERENCES = {"swan": swan_reference, "sinkgd": sinkgd_reference, "scale": scale_reference}


def adam_reference(grads):
    m = v = 0.0
    for t, g in enumerate(grads.astype(float), 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        yield (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)


def expected_updates(method, name, grads):
    """What is added to one parameter at each step, before weight decay."""
    if NUMBERS[name] is None:
        return -RATE * np.stack(list(adam_reference(grads)))
    moved, memory = [], 0.0
    remembered = 0.9 if (method, name) == ("scale", "head") else 0.0
    for grad in grads.astype(float):
        memory = remembered * memory + (1 - remembered) * grad
        matrices = memory.reshape(-1, *grad.shape[-2:]) if name == "stack" else [memory]
        done = [REFERENCES[method](x.reshape(x.shape[0], -1).T.copy()).T for x in matrices]
        moved.append(np.stack(done).reshape(grad.shape))
    return -RATE * np.stack(moved)


@pytest.mark.parametrize("method", METHODS)
def test_trajectory_is_the_published_one(method):
    # SWAN's iteration loses more of float32 in what JAX 0.8 makes of it.
    tolerance = 2e-4 if jax.__version_info__ >= (0, 10) else 3e-4
    grads = gradients()
    tx = METHODS[method](RATE, weight_decay=DECAY, weight_dimension_numbers=NUMBERS)
    params = {name: normal(50, *shape) for name, shape in SHAPES.items()}
    updates, _ = run(tx, grads, params)
    for name, got in updates.items():
        weight = params[name].astype(float)
        for moved, actual in zip(
            expected_updates(method, name, grads[name]), np.asarray(got, float), strict=True
        ):
            expected = moved - RATE * DECAY * weight
            largest = np.abs(expected).max()
            np.testing.assert_allclose(
                actual, expected, rtol=0, atol=tolerance * largest, err_msg=name
            )
            weight = weight + actual


@pytest.mark.parametrize("method", METHODS)
def test_state_is_what_the_formula_says(method):
    tx = METHODS[method](RATE, weight_dimension_numbers=NUMBERS)
    params = {name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in SHAPES.items()}
    rows = {row.path: row for row in fira_jax.describe(tx, params).rows}
    for name, shape in SHAPES.items():
        elements = rows[name].state_bytes // 4
        if NUMBERS[name] is None:
            assert elements == 2 * math.prod(shape)
        elif (method, name) == ("scale", "head"):
            assert elements == math.prod(shape)
        else:
            assert elements == 0
        assert (rows[name].view is None) == (NUMBERS[name] is None)
    arrays = jax.tree.leaves(jax.eval_shape(tx.init, params))
    assert sum(x.size for x in arrays) * 4 == 4 + sum(row.state_bytes for row in rows.values())


def test_describe_says_that_matrices_move_whole():
    table = str(fira_jax.describe(fira_jax.sinkgd(RATE), {"w": jnp.ones((4, 6)), "b": jnp.ones(6)}))
    assert re.search(r"w +4 x 6 +4 x 6 +- +- +0 B", table), table
    assert "1 of 2 parameters taken as matrices" in table


# --- hostile input ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_size_of_the_gradient_does_not_matter(method):
    """From subnormal squares to squares that overflow."""
    sizes = np.array([1e-30, 1.0, 1e30], np.float32)
    grad = normal(0, 5, 8) * sizes[:, None, None]
    tx = METHODS[method](RATE, **({"last_layer": None} if method == "scale" else {}))
    updates, _ = run(tx, {"w": grad}, {"w": jnp.zeros((5, 8))})
    small, ordinary, large = np.asarray(updates["w"])
    assert np.abs(ordinary).max() > 1e-4
    tolerance = {"rtol": 1e-2, "atol": 1e-2 * np.abs(ordinary).max()}
    np.testing.assert_allclose(small, ordinary, **tolerance)
    np.testing.assert_allclose(large, ordinary, **tolerance)


@pytest.mark.parametrize("method", METHODS)
def test_a_bad_matrix_stands_still_and_leaves_no_trace(method):
    tx = METHODS[method](RATE, weight_dimension_numbers=fira_jax.match_paths("head"))
    update = jax.jit(tx.update)

    def steps(bad):
        params = {"head": jnp.zeros((2, 4, 6)), "bias": jnp.zeros(5)}
        state, moved = tx.init(params), []
        for step, value in enumerate((1.0, *bad, 1.0)):
            grads = {"head": normal(step, 2, 4, 6), "bias": normal(step, 5)}
            if value != 1.0:
                grads["head"][0, 2, 3] = grads["bias"][2] = value
            if value == 0.0:
                grads["head"][0] = 0
            updates, state = update(grads, state, params)
            moved.append(updates)
        return moved, state

    got, expected = steps((np.nan, np.inf)), steps((0.0, 0.0))
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(x, y)
        assert np.isfinite(x).all()
    second = np.asarray(got[0][1]["head"])
    assert second[0].any() == (method == "scale")  # which remembers
    assert second[1].all()


@pytest.mark.parametrize("method", METHODS)
def test_zero_gradients_and_zero_columns_move_nothing(method):
    grad = normal(3, 2, 5, 8)
    grad[0], grad[1, :, 2] = 0, 0
    tx = METHODS[method](RATE, **({"last_layer": None} if method == "scale" else {}))
    first, second = np.asarray(run(tx, {"w": grad})[0]["w"])
    assert not first.any()
    assert not second[:, 2].any()
    assert np.isfinite(second).all()
    assert np.abs(second[:, 3]).max() > 1e-4


# --- pieces -------------------------------------------------------------------------------------


def test_sinkhorn_goes_to_a_point_that_both_normalizations_leave_alone():
    x = jnp.asarray(np.exp(normal(4, 24, 40)) * normal(5, 24, 40))
    both = fira_jax.transforms.multi_normalize(
        fira_jax.transforms.unit_rms("input"), fira_jax.transforms.unit_rms("output"), rounds=30
    )
    y = np.asarray(both.update(x, None)[0])
    np.testing.assert_allclose((y**2).mean(axis=0), 1, rtol=1e-3)
    np.testing.assert_allclose((y**2).mean(axis=1), 1, rtol=1e-5)  # normalized last
    np.testing.assert_array_equal(np.sign(y), np.sign(x))


@pytest.mark.parametrize("shape", [(5, 8), (8, 5)])
def test_whitening_gives_the_polar_factor(shape):
    x = normal(6, *shape)
    u, _, vt = np.linalg.svd(x.astype(float), full_matrices=False)
    y = np.asarray(fira_jax.transforms.whiten(30)(jnp.asarray(x)))
    expected = u @ vt * np.linalg.norm(x) / math.sqrt(5)
    np.testing.assert_allclose(y, expected, atol=1e-4)


def test_larger_steps_of_whitening_lift_small_singular_values_and_stay_near_one_value():
    values = np.logspace(0, -3, 6)
    x = jnp.diag(jnp.asarray(values, jnp.float32))

    def range_of(step_size):
        s = np.diag(np.asarray(fira_jax.transforms.whiten(10, step_size)(x)))
        return s.max() / s.min()

    assert range_of(0.8) < 1.6 / 0.56 * 1.05  # what the docstring promises
    assert range_of(0.5) > 10


def test_a_constant_column_has_no_direction():
    x = jnp.asarray(np.c_[np.full(1000, 0.1, np.float32), normal(7, 1000)])
    y = np.asarray(fira_jax.transforms.standardize("input")(x))
    assert not y[:, 0].any()
    np.testing.assert_allclose(y[:, 1].mean(), 0, atol=1e-6)
    np.testing.assert_allclose(y[:, 1].std(), 1, rtol=1e-5)


def test_both_sides_see_parameters_and_extra_arguments():
    def spy(seen):
        def update(updates, state, params=None, *, value):
            seen.append((jax.tree.map(jnp.shape, params), value))
            return updates, state

        return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)

    matrices, rest = [], []
    tx = fira_jax.on_matrices(spy(matrices), spy(rest), MuonDimensionNumbers(0, (1, 2)))
    params = {"attn": jnp.ones((6, 2, 4)), "bias": jnp.ones(3)}
    updates, _ = tx.update(params, tx.init(params), params, value=2)
    nothing = optax.MaskedNode()
    assert matrices == [({"attn": (6, 8), "bias": nothing}, 2)]
    assert rest == [({"attn": nothing, "bias": (3,)}, 2)]
    np.testing.assert_array_equal(updates["attn"], params["attn"])


def test_nnx_optimizer_and_zero_size_leaves():
    class Model(nnx.Module):
        def __init__(self):
            self.head = nnx.Param(jnp.ones((4, 6)))
            self.bias = nnx.Param(jnp.ones(6))
            self.empty = nnx.Param(jnp.ones((0, 3)))

    model = Model()
    optimizer = nnx.Optimizer(model, fira_jax.scale_optimizer(RATE), wrt=nnx.Param)
    grads = nnx.grad(lambda m: jnp.sum(m.head[...]) + jnp.sum(m.bias[...]))(model)
    optimizer.update(model, grads)
    np.testing.assert_allclose(model.head[...], 1 - RATE, rtol=1e-6)
    np.testing.assert_allclose(model.bias[...], 1 - RATE, rtol=1e-6)


# --- errors -------------------------------------------------------------------------------------


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="over must be one of 'input', 'output', got 'rows'"):
        fira_jax.transforms.unit_rms("rows")
    with pytest.raises(ValueError, match="over must be one of"):
        fira_jax.transforms.standardize("rows")
    with pytest.raises(ValueError, match="ns_steps must be at least 1, got 0"):
        fira_jax.swan(RATE, ns_steps=0)
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        fira_jax.sinkgd(RATE, rounds=0)
    with pytest.raises(ValueError, match="at least one normalization"):
        fira_jax.transforms.multi_normalize()


def test_a_missing_last_layer_is_an_error():
    params = {"attn": jnp.ones((4, 6)), "overhead": jnp.ones((4, 6))}
    with pytest.raises(ValueError, match=r"matches no parameter.*attn, overhead"):
        fira_jax.scale_optimizer(RATE).init(params)
    fira_jax.scale_optimizer(RATE, last_layer=None).init(params)


@pytest.mark.parametrize("method", METHODS)
def test_dimension_numbers_that_do_not_fit_are_named(method):
    tx = METHODS[method](RATE, weight_dimension_numbers={"w": MuonDimensionNumbers(0, 5)})
    with pytest.raises(ValueError, match=r"parameter 'w' with shape \(4, 6\)"):
        tx.init({"w": jnp.ones((4, 6))})

"""M-FAC beside the Sherman–Morrison recursion on a dense inverse, in NumPy float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from support import normal, run

import fira_jax

SHAPES = {"w": (3, 4), "b": (5,)}


def gradients(steps, sizes=1.0):
    scale = np.broadcast_to(sizes, steps)
    return {
        name: normal(i, steps, *shape) * scale.reshape(-1, *(1,) * len(shape)).astype(np.float32)
        for i, (name, shape) in enumerate(SHAPES.items())
    }


def flat(tree):
    """Steps by all numbers of the model."""
    return np.concatenate(
        [np.asarray(tree[name], float).reshape(len(tree[name]), -1) for name in SHAPES], axis=1
    )


def dense(grads, rank, damping):
    """Each gradient times the inverse built one rank-one step after another, oldest first."""
    done = []
    for t, g in enumerate(grads):
        inverse = np.eye(g.size) / damping
        for past in grads[max(0, t - rank + 1) : t + 1]:
            turned = inverse @ past
            inverse -= np.outer(turned, turned) / (rank + past @ turned)
        done.append(inverse @ g)
    return np.stack(done)


@pytest.mark.parametrize(
    ("rank", "damping", "sizes"),
    [
        (4, 1e-2, 1.0),  # the ring comes round twice
        (20, 1e-3, 1.0),  # more places than numbers: the window is linearly dependent
        (4, 1e-3, 10.0 ** np.array([0, 1, -2, 3, 0, -1, 2, 0, -2, 0])),
    ],
)
def test_direction_is_the_recursion_s(rank, damping, sizes):
    grads = gradients(10 if rank == 4 else 24, sizes)
    got, _ = run(fira_jax.transforms.scale_by_m_fac(rank, damping), grads)
    expected = dense(flat(grads), rank, damping)
    error = np.linalg.norm(flat(got) - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error.max() < (2e-4 if rank == 4 else 2e-2), error


def test_in_double_precision_they_agree_to_ten_digits():
    with jax.enable_x64(True):
        grads = jax.tree.map(lambda g: g.astype(np.float64), gradients(24))
        got, _ = run(fira_jax.transforms.scale_by_m_fac(20, 1e-5), grads)
        np.testing.assert_allclose(flat(got), dense(flat(grads), 20, 1e-5), rtol=1e-6, atol=1e-10)


def test_method_is_momentum_decay_and_rate_around_it():
    grads = gradients(6)
    tx = fira_jax.m_fac(0.1, 3, weight_decay=0.01, damping=0.5, momentum=0.9)
    params = {name: normal(9, *shape) for name, shape in SHAPES.items()}
    got, state = run(tx, grads, params)
    weight = flat(jax.tree.map(lambda x: x[None], params))[0]
    average = 0.0
    for direction, actual in zip(dense(flat(grads), 3, 0.5), flat(got), strict=True):
        average = 0.9 * average + 0.1 * direction
        expected = -0.1 * (average + 0.01 * weight)
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-5)
        weight = weight + actual
    size = weight.size
    assert sum(x.size for x in jax.tree.leaves(state)) == 3 * size + 3 * 3 + size + 2  # two counts


def test_a_gradient_that_is_not_finite_is_not_remembered():
    grads = gradients(5)
    spoilt = jax.tree.map(lambda g: np.insert(g, 2, g[2], axis=0), grads)
    spoilt["w"][2, 1, 1], spoilt["b"][2, 0] = np.inf, 1e30
    got, state = run(fira_jax.transforms.scale_by_m_fac(3, 0.1), spoilt)
    expected, expected_state = run(fira_jax.transforms.scale_by_m_fac(3, 0.1), grads)
    assert not flat(got)[2].any()
    np.testing.assert_array_equal(np.delete(flat(got), 2, axis=0), flat(expected))
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(expected_state), strict=True):
        np.testing.assert_array_equal(x, y)


def test_zero_gradients_move_nothing():
    zeros = jax.tree.map(np.zeros_like, gradients(3))
    assert not flat(run(fira_jax.transforms.scale_by_m_fac(2), zeros)[0]).any()


def test_inside_a_subspace_the_window_is_small():
    inner = fira_jax.transforms.scale_by_m_fac(4, 0.1)
    tx = fira_jax.galore(1.0, 2, scale=1.0, base_optimizer=inner, basis="svd")
    params = {"w": jnp.zeros((6, 10))}
    state = tx.init(params)
    assert state[1].gradients["w"].shape == (4, 2, 10)
    grad = {"w": normal(0, 6, 10)}
    update = np.asarray(tx.update(grad, state, params)[0]["w"])
    basis = np.linalg.svd(grad["w"])[0][:, :2]
    inside = basis.T @ grad["w"]
    expected = -basis @ dense(inside.reshape(1, -1).astype(float), 4, 0.1).reshape(2, 10)
    np.testing.assert_allclose(update, expected, rtol=1e-3, atol=1e-4)


def test_the_window_is_sharded_like_the_parameter():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    params = {"w": jax.ShapeDtypeStruct((4, 6), jnp.float32)}
    shardings = {"w": NamedSharding(mesh, PartitionSpec(None, "data"))}
    state = fira_jax.state_shardings(fira_jax.transforms.scale_by_m_fac(3), params, shardings)
    assert tuple(state.gradients["w"].spec) == (None, None, "data")
    assert tuple(state.products.spec) == ()


def test_dtype_of_the_window():
    tx = fira_jax.transforms.scale_by_m_fac(3, 1.0, gradient_dtype=jnp.bfloat16)
    grads = gradients(3)
    updates, state = run(tx, grads)
    assert state.gradients["w"].dtype == jnp.bfloat16
    assert (updates["w"].dtype, state.products.dtype) == (jnp.float32, jnp.float32)
    np.testing.assert_allclose(flat(updates), dense(flat(grads), 3, 1.0), rtol=0.1, atol=0.05)


def test_wrong_arguments_are_named():
    with pytest.raises(TypeError, match="rank must be an int, got 2"):
        fira_jax.m_fac(0.1, 2.5)
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        fira_jax.transforms.scale_by_m_fac(0)
    with pytest.raises(ValueError, match="damping must be above 0, got 0"):
        fira_jax.transforms.scale_by_m_fac(2, 0.0)
    with pytest.raises(ValueError, match="gradient_dtype must be a floating-point dtype, got int8"):
        fira_jax.transforms.scale_by_m_fac(2, gradient_dtype=jnp.int8)
    tx = fira_jax.transforms.scale_by_m_fac(2)
    with pytest.raises(ValueError, match=r"shape \(2, 4\), but it was initialized with .*\(2, 3\)"):
        tx.update({"w": jnp.ones(4)}, tx.init({"w": jnp.ones(3)}))


def test_works_with_injected_damping():
    tx = optax.inject_hyperparams(fira_jax.m_fac, static_args="rank")(0.1, 2, damping=0.5)
    params = {"w": jnp.ones(3)}
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], -0.1 / (0.5 + 3 / 2), rtol=1e-5)

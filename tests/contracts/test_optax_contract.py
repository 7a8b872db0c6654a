"""Our chains keep what Optax promises: its wrappers compose with them and change nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers
from support import compilations

import fira_jax

RATE = 0.01
SETTINGS = {"rank": 3, "update_proj_gap": 3, "scale": 0.25, "basis": "svd"}
LOW_RANK = fira_jax.LowRank(**SETTINGS)
STEPS = 7  # refreshes at 0, 3 and 6
METHODS = {"fira": fira_jax.fira, "galore": fira_jax.galore}


def make_params(dtype=jnp.float32):
    return random_tree({"kernel": (6, 10), "bias": (10,)}, dtype=dtype)


def make_grads(params, steps=STEPS):
    """Gradients of different sizes for each step, [steps, ...]."""
    sizes = np.exp(np.random.default_rng(2).standard_normal(steps))
    shapes = jax.tree.map(lambda x: (steps, *x.shape), params)
    return jax.tree.map(
        lambda g, x: (g * sizes.reshape(-1, *(1,) * x.ndim)).astype(x.dtype),
        random_tree(shapes, seed=1),
        params,
    )


def random_tree(shapes, *, dtype=jnp.float32, seed=0):
    # From NumPy: to compile jax.random for every shape takes longer than the tests.
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape), dtype),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def at(grads, step):
    return jax.tree.map(lambda g: g[step], grads)


def train(tx, params, grads, steps=STEPS, *, jit=False):
    """The weights and the state after some steps.

    Without ``jit`` the tests share what JAX compiles for each operation, which is what costs time.
    """
    state, update = tx.init(params), jax.jit(tx.update) if jit else tx.update
    for step in range(steps):
        updates, state = update(at(grads, step), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@functools.cache
def plain(method, *, jit=False):
    """Where the bare method ends."""
    params = make_params()
    return train(METHODS[method](RATE, **SETTINGS), params, make_grads(params), jit=jit)


def assert_same(actual, expected, rtol=0.0, atol=0.0):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_allclose(np.asarray(x, float), np.asarray(y, float), rtol=rtol, atol=atol)


assert_close = functools.partial(assert_same, rtol=1e-5, atol=1e-6)


# --- The chain ---------------------------------------------------------------------------------


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_the_chain_spelled_out_is_the_method_bit_for_bit(method, jit):
    residual = [
        fira_jax.fira_residual_scale(),
        fira_jax.norm_growth_limit(LOW_RANK, gamma=1.01),
    ]
    chain = optax.chain(
        fira_jax.low_rank_project(LOW_RANK),
        fira_jax.scale_by_adam_in_subspace(LOW_RANK, b1=0.9, b2=0.999, eps=1e-6),
        *(residual if method == "fira" else []),
        fira_jax.project_back(),
        optax.scale_by_learning_rate(RATE),
    )
    params = make_params()
    got, state = train(chain, params, make_grads(params), jit=jit)
    expected, expected_state = plain(method, jit=jit)
    assert_same(got, expected)
    assert_same(state[:2], expected_state[:2])
    assert not np.allclose(got["kernel"], params["kernel"], atol=0.1 * RATE)


def test_the_chain_needs_no_params():
    params = make_params()
    tx = optax.chain(
        fira_jax.low_rank_project(LOW_RANK),
        fira_jax.in_subspace(LOW_RANK, optax.scale_by_adam()),
        fira_jax.fira_residual_scale(),
        fira_jax.norm_growth_limit(LOW_RANK),
        fira_jax.project_back(),
    )
    grads, state = at(make_grads(params), 0), tx.init(params)
    assert_same(tx.update(grads, state)[0], tx.update(grads, state, params)[0])


def test_weight_decay_needs_params_as_in_optax():
    params = make_params()
    tx = fira_jax.fira(RATE, **SETTINGS, weight_decay=0.1)
    with pytest.raises(ValueError, match="params"):
        tx.update(at(make_grads(params), 0), tx.init(params))


def test_learning_rate_schedule():
    params = make_params()
    grads = make_grads(params)
    halved = optax.piecewise_constant_schedule(RATE, {2: 0.5})
    scheduled = fira_jax.fira(halved, **SETTINGS)
    unscaled = fira_jax.fira(1.0, **SETTINGS)
    state, unscaled_state = scheduled.init(params), unscaled.init(params)
    for step in range(4):
        updates, state = scheduled.update(at(grads, step), state, params)
        expected, unscaled_state = unscaled.update(at(grads, step), unscaled_state, params)
        assert_close(updates, jax.tree.map(lambda u, s=step: u * halved(s), expected))


# --- Stacks ------------------------------------------------------------------------------------


def test_stacked_layers_are_separate_layers():
    stacked = random_tree({"w": (3, 6, 10)})
    grads = {"w": make_grads(stacked)["w"].at[3, 1].set(jnp.nan)}  # at a refresh, of one layer
    tx = fira_jax.fira(RATE, **SETTINGS, weight_dimension_numbers=MuonDimensionNumbers(-2, -1))
    together, state = train(tx, stacked, grads, jit=True)
    apart, states = train(
        tx,
        {str(i): stacked["w"][i] for i in range(3)},
        {str(i): grads["w"][:, i] for i in range(3)},
        jit=True,
    )
    assert_close(together["w"], jnp.stack([apart[str(i)] for i in range(3)]))
    for name in ("bases", "mu", "nu", "previous"):
        separate = optax.tree.get(states, name)
        assert_close(
            optax.tree.get(state, name)["w"], jnp.stack([separate[str(i)] for i in range(3)])
        )


# --- Optax's wrappers --------------------------------------------------------------------------


def test_multi_steps_is_the_big_batch():
    params = make_params()
    small = make_grads(params, steps=4 * STEPS)
    big = jax.tree.map(lambda g: g.reshape(STEPS, 4, *g.shape[1:]).mean(1), small)
    tx = fira_jax.fira(RATE, **SETTINGS)
    got, _ = train(optax.MultiSteps(tx, every_k_schedule=4), params, small, 4 * STEPS, jit=True)
    expected, _ = train(tx, params, big)
    assert_close(got, expected)


@pytest.mark.parametrize("method", METHODS)
def test_inject_hyperparams(method):
    factory = optax.inject_hyperparams(METHODS[method], static_args=("rank", "update_proj_gap"))
    params = make_params()
    got, state = train(factory(RATE, **SETTINGS), params, make_grads(params), jit=True)
    expected, expected_state = plain(method)
    assert_close(got, expected)
    assert_close(state.inner_state[:2], expected_state[:2])
    assert {"learning_rate", "scale", "b1", "eps"} <= state.hyperparams.keys()


def test_injected_hyperparameters_act():
    params = make_params()
    grads = make_grads(params)
    tx = optax.inject_hyperparams(fira_jax.fira, static_args=("rank", "update_proj_gap"))(
        RATE, **SETTINGS | {"scale": lambda count: 0.25 * (count + 1)}
    )
    state, update = tx.init(params), jax.jit(tx.update)
    _, state = update(at(grads, 0), state, params)
    at_last = at(grads, 1)
    updates, next_state = update(at_last, state, params)
    assert float(next_state.hyperparams["scale"]) == 0.5
    state.hyperparams["learning_rate"] = 10 * state.hyperparams["learning_rate"]
    with compilations() as compiled:
        larger, _ = update(at_last, state, params)
    assert not compiled
    assert_close(larger, jax.tree.map(lambda u: 10 * u, updates))


def test_inject_hyperparams_without_static_arguments_says_what_to_do():
    with pytest.raises(TypeError, match="static_args"):
        optax.inject_hyperparams(fira_jax.fira)(RATE, **SETTINGS).init(make_params())


def test_masked():
    params = make_params()
    grads = make_grads(params)
    tx = optax.masked(fira_jax.fira(RATE, **SETTINGS), {"kernel": True, "bias": False})
    got, state = train(tx, params, grads)
    assert_same(got["kernel"], plain("fira")[0]["kernel"])
    np.testing.assert_allclose(got["bias"], params["bias"] + grads["bias"].sum(0), rtol=1e-5)
    assert isinstance(optax.tree.get(state, "mu")["bias"], optax.MaskedNode)


def test_partition():
    params = make_params()
    labels = {"kernel": "matrix", "bias": "rest"}
    tx = optax.partition(
        {"matrix": fira_jax.fira(RATE, **SETTINGS), "rest": optax.adam(RATE)}, labels
    )
    grads = make_grads(params)
    got, _ = train(tx, params, grads)
    assert_same(got["kernel"], plain("fira")[0]["kernel"])
    adam, _ = train(optax.adam(RATE), {"bias": params["bias"]}, {"bias": grads["bias"]})
    assert_close(got["bias"], adam["bias"])


def test_apply_if_finite_skips_a_step_as_if_it_had_not_been():
    params = make_params()
    grads = make_grads(params)
    with_bad = jax.tree.map(lambda g: jnp.insert(g, 3, jnp.inf, axis=0), grads)
    tx = optax.apply_if_finite(fira_jax.fira(RATE, **SETTINGS), max_consecutive_errors=3)
    got, state = train(tx, params, with_bad, STEPS + 1, jit=True)
    assert int(state.total_notfinite) == 1
    assert_close(got, plain("fira")[0])

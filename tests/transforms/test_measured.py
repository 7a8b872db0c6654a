"""What is measured is what happens, and measuring changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import normal

import fira_jax

RANK, GAP, STEPS = 2, 3, 5
NUMBERS = optax.contrib.MuonDimensionNumbers(-2, -1)
PARAMS = {"stack": jnp.zeros((2, 6, 10)), "tall": jnp.zeros((10, 6)), "bias": jnp.zeros(6)}
OPTIONS = {"rank": RANK, "update_proj_gap": GAP, "weight_dimension_numbers": NUMBERS}


def gradients():
    grads = {name: normal(i, STEPS, *x.shape) for i, (name, x) in enumerate(PARAMS.items())}
    grads["tall"][3] *= 50  # a spike for the limiter
    return grads


def history(tx):
    """The updates, and what is measured if it is, of all steps."""

    @jax.jit
    def run(state):
        def step(state, grad):
            updates, state = tx.update(grad, state, PARAMS)
            try:
                return state, (updates, fira_jax.metrics(state))
            except ValueError:
                return state, (updates, None)

        return jax.lax.scan(step, state, gradients())[1]

    return run(tx.init(PARAMS))


@pytest.mark.parametrize("name", ["fira", "galore", "apollo", "ldadam", "frugal"])
def test_updates_stay_the_same_and_numbers_are_in_their_ranges(name):
    method = getattr(fira_jax, name)
    options = (
        OPTIONS
        if name != "ldadam"
        else {k: v for k, v in OPTIONS.items() if k != "update_proj_gap"}
    )
    tx = method(1e-2, **options)
    # Operation by operation: what else a compiled program computes changes how its sums are fused.
    with jax.disable_jit():
        plain, _ = history(tx)
        got, watched = history(fira_jax.measured(tx))
    jax.tree.map(np.testing.assert_array_equal, got, plain)
    assert set(watched.parameters) == {"stack", "tall"}
    assert watched.parameters["stack"].limiter.shape == (STEPS, 2)
    for x in watched.parameters.values():
        assert np.all(np.isfinite(x.residual_ratio))
        assert np.all((x.limiter > 0) & (x.limiter <= 1))
        assert np.all(x.captured_energy > 0)


def test_the_numbers_are_those_of_the_formulas():
    tx = fira_jax.fira(1e-2, basis="svd", scale=0.5, **OPTIONS)
    _, watched = history(fira_jax.measured(tx))
    got, grads = watched.parameters["tall"], gradients()["tall"]
    np.testing.assert_array_equal(got.steps_since_refresh, [0, 1, 2, 0, 1])
    for step, basis in ((0, 0), (1, 0), (3, 3)):  # compressed: the shorter side, the outputs
        P = np.linalg.svd(grads[basis])[2][:RANK].T
        share = np.sum((grads[step] @ P) ** 2) / np.sum(grads[step] ** 2)
        np.testing.assert_allclose(got.captured_energy[step], share, rtol=1e-5)
    assert got.limiter[0] == 1
    # At the first step N = R / |R| * const, so that both parts are known without a limiter.
    G = grads[0]
    P = np.linalg.svd(G)[2][:RANK].T
    R = G @ P
    N = 0.1 * R / (np.sqrt(0.001) * np.abs(R) + 1e-6)
    phi = np.linalg.norm(N, axis=1) / (np.linalg.norm(R, axis=1) + 1e-8)
    residual = phi[:, None] * (G - 0.5 * R @ P.T)
    ratio = np.linalg.norm(residual) / (0.5 * np.linalg.norm(N))
    np.testing.assert_allclose(got.residual_ratio[0], ratio, rtol=1e-4)
    summary = watched.summary
    np.testing.assert_allclose(
        summary.limiter, np.minimum(got.limiter, watched.parameters["stack"].limiter.min(1))
    )


def test_the_limiter_is_one_where_the_residual_may_grow_as_it_does():
    tx = fira_jax.measured(fira_jax.fira(1e-2, **OPTIONS))
    grads, state, update = gradients(), tx.init(PARAMS), jax.jit(tx.update)
    factors, growth = [], []
    for step in range(STEPS):
        before = optax.tree.get(state, "previous")["tall"]
        _, state = update({name: x[step] for name, x in grads.items()}, state, PARAMS)
        factors.append(float(fira_jax.metrics(state).parameters["tall"].limiter))
        growth.append(float(optax.tree.get(state, "previous")["tall"] / (before + 1e-8)))
    limited = np.array(factors[1:]) < 1
    assert limited.any()
    np.testing.assert_allclose(np.array(growth[1:])[limited], 1.01, rtol=1e-5)
    assert np.all(np.array(growth[1:])[~limited] <= 1.01 * (1 + 1e-5))


def test_inside_other_transformations():
    tx = optax.chain(
        optax.clip(1.0),
        optax.partition(
            {"fira": fira_jax.measured(fira_jax.fira(1e-2, **OPTIONS)), "sgd": optax.sgd(0.1)},
            {"stack": "fira", "tall": "sgd", "bias": "sgd"},
        ),
    )
    _, watched = history(tx)
    assert set(watched.parameters) == {"stack"}
    table = fira_jax.describe(tx, PARAMS)
    assert [row.path for row in table.rows if row.view] == ["stack"]


def test_a_gradient_of_zero_is_silent():
    tx = fira_jax.measured(fira_jax.fira(1e-2, **OPTIONS))
    with jax.debug_nans(True):
        _, state = jax.jit(tx.update)(PARAMS, tx.init(PARAMS), PARAMS)
    assert fira_jax.metrics(state).summary.captured_energy == 0


def test_nothing_to_measure():
    with pytest.raises(ValueError, match=r"nothing measured; wrap the method: fira_jax.measured"):
        fira_jax.metrics(fira_jax.fira(1e-2, **OPTIONS).init(PARAMS))
    low_rank = fira_jax.LowRank(RANK, weight_dimension_numbers=NUMBERS)
    tx = fira_jax.measured(fira_jax.low_rank_project(low_rank))
    with pytest.raises(ValueError, match="'stack' is projected but does not come to project_back"):
        tx.update(PARAMS, tx.init(PARAMS))

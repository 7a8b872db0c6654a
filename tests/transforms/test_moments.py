"""Moments at a refresh, the optimizer inside the subspace, and what all of it stores."""

from __future__ import annotations

import functools
import math

import chex
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from optax.contrib import MuonDimensionNumbers
from support import Kept, Shuffled, examples, normal, run

import fira_jax

# --- a new basis ------------------------------------------------------------------------------


@functools.cache
def trajectory(basis, moments: str):
    tx = fira_jax.fira(
        0.1,
        3,
        2,
        basis=basis,
        moments=moments,
        weight_dimension_numbers=MuonDimensionNumbers(-2, -1),
    )
    return jax.jit(lambda grads: run(tx, grads)[0])


@examples(max_examples=5)
@given(seed=st.integers(0, 2**31 - 1))
def test_carried_moments_make_signs_and_order_of_the_basis_irrelevant(seed):
    """Adam itself is not invariant under rotations, so neither signs nor order may be more."""
    grads = {"w": normal(seed, 7, 6, 9), "stack": normal(seed + 1, 7, 2, 9, 6)}
    canonical = trajectory("svd", "carry")(grads)
    shuffled = trajectory(Shuffled(), "carry")(grads)
    chex.assert_trees_all_close(shuffled, canonical, rtol=1e-3, atol=1e-4)


def test_kept_moments_depend_on_signs_and_order_of_the_basis():
    """From the second refresh on: the first finds no moments yet."""
    grads = {"w": normal(0, 7, 6, 9), "stack": normal(1, 7, 2, 9, 6)}
    canonical = trajectory("svd", "keep")(grads)
    shuffled = trajectory(Shuffled(), "keep")(grads)
    for name in grads:
        np.testing.assert_allclose(shuffled[name][:2], canonical[name][:2], rtol=1e-3, atol=1e-4)
        assert np.abs(shuffled[name][2:] - canonical[name][2:]).max() > 0.01


def test_moments_turn_only_when_the_basis_does():
    """Carrying into an unchanged basis is no change; T∘T keeps the second moment positive."""
    grads = normal(0, 6, 6, 9)
    carried, state = run(fira_jax.fira(0.1, 3, 2, basis=Kept(), moments="carry"), grads)
    kept, _ = run(fira_jax.fira(0.1, 3, 2, basis=Kept()), grads)
    np.testing.assert_allclose(carried, kept, rtol=1e-5, atol=1e-6)
    _, state = run(fira_jax.fira(0.1, 3, 1, basis="svd", moments="carry"), grads)
    assert (np.asarray(state[1].nu) >= 0).all()


# --- any other optimizer ----------------------------------------------------------------------


def test_bias_correction_loses_no_digits():
    """The square root of 1 - 0.999 by subtraction in float32 is off by 2e-5."""
    low_rank = fira_jax.LowRank(2)
    tx = optax.chain(
        fira_jax.low_rank_project(low_rank), fira_jax.scale_by_adam_in_subspace(low_rank)
    )
    grads = {"w": normal(0, 4, 6)}
    state = tx.init(grads)
    for step in range(1, 4):
        updates, state = tx.update(grads, state)
        exact = math.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        np.testing.assert_allclose(updates["w"].step_scale, exact, rtol=1e-6)


def test_inner_optimizer_sees_coordinates():
    """Lion in the subspace is Lion on PᵀG with parameters PᵀW, lifted back."""
    grads, params = normal(0, 4, 6, 9), normal(1, 6, 9)
    lion = optax.chain(optax.scale_by_lion(), optax.add_decayed_weights(0.1))
    tx = fira_jax.galore(-1.0, 3, 100, 0.5, lion, basis="svd")
    ours, state = run(tx, grads, jnp.asarray(params))
    basis = np.asarray(state[0].bases)
    inner = lion.init(jnp.zeros((3, 9)))
    for t in range(4):
        update, inner = lion.update(basis.T @ grads[t], inner, basis.T @ params)
        np.testing.assert_allclose(ours[t], 0.5 * basis @ np.asarray(update), atol=1e-5)
        params = params + np.asarray(ours[t])


# --- state ------------------------------------------------------------------------------------


def elements(tree) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


SIZES = st.integers(1, 40)


@examples(max_examples=60)
@given(
    m=SIZES, n=SIZES, rank=SIZES, layers=st.integers(1, 5), side=st.sampled_from(["short", "long"])
)
def test_state_has_as_many_elements_as_the_formulas_say(m, n, rank, layers, side):
    params = {
        "w": jax.ShapeDtypeStruct((m, n), jnp.float32),
        "stack": jax.ShapeDtypeStruct((layers, m, n), jnp.float32),
        "b": jax.ShapeDtypeStruct((n,), jnp.float32),
    }
    options = {
        "rank": rank,
        "side": side,
        "weight_dimension_numbers": MuonDimensionNumbers(-2, -1),
    }
    shorter, longer = sorted((m, n))
    a, b = (shorter, longer) if side == "short" else (longer, shorter)
    r, matrices = min(rank, shorter), 1 + layers
    rest = 2 * n + 2  # Adam on the vector, two step counts

    def stored(method, **more):
        return elements(jax.eval_shape(method(0.1, **options, **more).init, params)) - rest

    assert stored(fira_jax.fira) == matrices * (a * r + 2 * b * r + 1)
    assert stored(fira_jax.fira, gamma=None) == matrices * (a * r + 2 * b * r)
    assert stored(fira_jax.galore) == matrices * (a * r + 2 * b * r)
    assert stored(fira_jax.galore, basis="dct") == matrices * (r + 2 * b * r)
    assert stored(fira_jax.galore, basis="random") == matrices * (2 * b * r)


def test_dtypes_of_the_state_are_chosen_one_by_one():
    tx = fira_jax.fira(0.1, 2, basis_dtype=jnp.bfloat16, mu_dtype=jnp.float16, nu_dtype=jnp.float32)
    params = jax.ShapeDtypeStruct((4, 6), jnp.bfloat16)
    state = jax.eval_shape(tx.init, params)
    for _ in range(2):
        assert state[0].bases.dtype == jnp.bfloat16
        assert (state[1].mu.dtype, state[1].nu.dtype) == (jnp.float16, jnp.float32)
        assert state[3].previous.dtype == jnp.float32
        updates, state = jax.eval_shape(tx.update, params, state, params)
        assert updates.dtype == jnp.bfloat16


@pytest.mark.parametrize("basis", ["svd", "randomized", "dct", "random"])
def test_abstract_parameters_give_the_same_state(basis):
    tx = fira_jax.fira(0.1, 2, basis=basis)
    params = {"w": jnp.ones((4, 6)), "b": jnp.ones(3)}
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    chex.assert_trees_all_equal(tx.init(params), tx.init(abstract))

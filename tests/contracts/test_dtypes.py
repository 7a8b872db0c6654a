"""State keeps dtypes and structure, moments have the reach of float32, promotion may be strict.

Traced only, so that it costs little for every method and every piece.
"""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import optax
import pytest
from family import (
    METHODS,
    VARIANTS,
    arrays_of,
    build,
    gradients,
    params,
    small,
    with_extras,
)

import fira_jax


def before_and_after(variant, param_dtype, grad_dtype):
    """The state of a fresh optimizer and after a step, without computing either."""
    tx = build(variant)
    weights, grads = params(variant, param_dtype), gradients(variant, 1, grad_dtype)
    state = jax.eval_shape(tx.init, weights)
    return state, jax.eval_shape(tx.update, grads, state, weights)[1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_parameters_with_float32_gradients(variant):
    before, after = before_and_after(variant, jnp.bfloat16, jnp.float32)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert arrays_of(before) == arrays_of(after)


@pytest.mark.parametrize("variant", ["fira", "ldadam", "trion", "gradnormlorp", "racs", "lora_pro"])
def test_float32_parameters_with_bfloat16_gradients(variant):
    before, after = before_and_after(variant, jnp.float32, jnp.bfloat16)
    assert arrays_of(before) == arrays_of(after)


def test_moments_of_bfloat16_parameters_keep_their_two_bytes():
    tx = fira_jax.fira(1e-2, rank=2)
    weights = {"w": jnp.ones((8, 16), jnp.bfloat16), "b": jnp.ones(16, jnp.bfloat16)}
    state = tx.init(weights)[1]
    assert {x.dtype for x in jax.tree.leaves((state.mu, state.nu))} == {jnp.dtype(jnp.bfloat16)}


# What never exceeds 1, and gradients themselves, fit float16.
SMALL_ENOUGH = ("bases", "gradients", ".initial")


@pytest.mark.parametrize("variant", VARIANTS)
def test_moments_of_float16_parameters_are_float32(variant):
    before, after = before_and_after(variant, jnp.float16, jnp.float16)
    assert arrays_of(before) == arrays_of(after)
    narrow = [path for path, x in arrays_of(before) if x.dtype == jnp.float16]
    assert not [path for path in narrow if not any(part in path for part in SMALL_ENOUGH)]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_wrappers_that_need_the_dtypes_of_gradients_get_them(variant, dtype):
    """Injected numbers are float32 arrays, and a branch that skips a step has its gradients."""
    method, fixed = VARIANTS[variant]
    options = small(method, **fixed)
    taken = inspect.signature(METHODS[method]).parameters
    static = [
        name
        for name, parameter in taken.items()
        if callable(options.get(name)) or type(options.get(name, parameter.default)) is int
    ]
    inject = optax.inject_hyperparams(METHODS[method], static_args=static)
    tx = optax.apply_if_finite(with_extras(inject(**options)), 3)
    weights, grads = params(variant, dtype), gradients(variant, 1, dtype)
    state = jax.eval_shape(tx.init, weights)
    updates, after = jax.eval_shape(tx.update, grads, state, weights)
    assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
    assert arrays_of(state) == arrays_of(after)


@pytest.mark.parametrize("variant", VARIANTS)
def test_dtypes_are_never_promoted_implicitly(variant):
    with jax.numpy_dtype_promotion("strict"):
        before_and_after(variant, jnp.float32, jnp.float32)


@pytest.mark.parametrize("method", [fira_jax.fira, fira_jax.scale_optimizer])
def test_gradients_whose_squares_leave_float16(method):
    options = {"rank": 2} if method is fira_jax.fira else {"last_layer": "w"}
    tx = method(1e-2, **options)
    grads = {"w": jnp.full((4, 6), 1e4, jnp.float16), "b": jnp.full(3, 1e4, jnp.float16)}
    state, step = tx.init(grads), jax.jit(tx.update)
    for _ in range(20):
        updates, state = step(grads, state, grads)
    for x in jax.tree.leaves((updates, state)):
        assert jnp.isfinite(x).all()
    assert all(x.dtype == jnp.float16 and (x != 0).all() for x in jax.tree.leaves(updates))


def test_a_base_optimizer_sees_float16_in_float32():
    seen = []

    def look(updates, state, params=None):
        seen.extend([*jax.tree.leaves(updates), *jax.tree.leaves(params)])
        return updates, state

    base = optax.GradientTransformation(optax.init_empty_state, look)
    weights = params("galore", jnp.float16)
    tx = fira_jax.galore(1e-2, rank=2, base_optimizer=base)
    updates = jax.eval_shape(tx.update, weights, tx.init(weights), weights)[0]
    assert {x.dtype for x in seen} == {jnp.dtype("float32")}
    assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype("float16")}

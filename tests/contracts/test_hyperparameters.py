"""Numbers, wherever they come from: never used in less than float32, refused out of range."""

from __future__ import annotations

import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from family import METHODS, small

import fira_jax
from fira_jax.checks import decay, epsilon, number

DECAYS = [
    (method, name)
    for method, make in METHODS.items()
    for name in inspect.signature(make).parameters
    if name in ("b1", "b2", "momentum", "rho", "decay")
]
MATRIX = {"w": jnp.ones((8, 16), jnp.bfloat16), "b": jnp.ones(16, jnp.bfloat16)}


@pytest.mark.parametrize(("method", "name"), DECAYS)
def test_decays_out_of_range_are_refused(method, name):
    for value in (1.0, 2, -0.1, float("nan"), np.float32(1), jnp.float32(1)):
        with pytest.raises(ValueError, match=f"{name} must be at least 0 and below 1, got"):
            METHODS[method](**small(method, **{name: value}))


@pytest.mark.parametrize("method", METHODS)
def test_numbers_are_numbers(method):
    taken = inspect.signature(METHODS[method]).parameters
    for value in ("1e-2", None):
        with pytest.raises(TypeError, match="learning_rate must be a number or a schedule"):
            METHODS[method](**small(method, learning_rate=value))
    for name in {"scale", "b1", "eps", "weight_decay"} & taken.keys():
        for value in ("0.5", None, True):
            with pytest.raises(TypeError, match=f"{name} must be a number, got {value!r}"):
                METHODS[method](**small(method, **{name: value}))
        with pytest.raises(TypeError, match="got a function: only learning_rate may be a schedule"):
            METHODS[method](**small(method, **{name: lambda count: 0.5}))
    with pytest.raises(ValueError, match="weight_decay must be at least 0, got -1"):
        METHODS[method](**small(method, weight_decay=-1))


@pytest.mark.parametrize("method", ["fira", "racs", "trion"])
def test_decays_that_bfloat16_rounds_to_one(method):
    """Injected as Optax does by default: what 0.999 becomes must neither stop nor break Adam."""
    static = {"rank", "update_proj_gap", "ns_steps"} & inspect.signature(
        METHODS[method]
    ).parameters.keys()
    inject = optax.inject_hyperparams(METHODS[method], static_args=static)
    tx = inject(**small(method, weight_decay=0.0, b2=0.999))
    state = tx.init(MATRIX)
    assert state.hyperparams["b2"] == 1
    step = jax.jit(tx.update)
    for _ in range(3):
        updates, state = step(MATRIX, state, MATRIX)
    # Adam moves a parameter with a steady gradient by its learning rate.
    assert jnp.allclose(updates["b"], -1e-2, rtol=0.02)
    assert jnp.isfinite(updates["w"]).all()
    assert (updates["w"] != 0).all()


def test_what_a_narrow_dtype_may_have_rounded():
    read = decay("b2", jnp.bfloat16(0.999))
    assert read.dtype == jnp.float32
    assert abs(read - 0.999) < 5e-5
    assert number("gamma", jnp.bfloat16(1.01), least=1).dtype == jnp.float32
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert jax.jit(lambda x: decay("b2", x))(jnp.float32(1)) < 1
        assert jax.jit(lambda x: decay("b2", x))(jnp.float32(-1)) == 0
        assert jax.jit(lambda x: decay("b2", x))(jnp.float32(0.999)) == jnp.float32(0.999)
        assert number("scale", jnp.bfloat16(0.25)).dtype == jnp.float32
        assert epsilon("eps", jnp.float16(1e-8)) > 0  # zero in float16
    assert decay("b1", 0.9) == 0.9
    assert decay("b1", 0) == 0


def test_functions_that_optax_calls_as_schedules():
    """Without static_args a mask would be dropped, and dimension numbers lost, in silence."""
    static = ("rank", "update_proj_gap")
    inject = optax.inject_hyperparams(fira_jax.fira, static_args=static)
    told = optax.inject_hyperparams(
        fira_jax.fira, static_args=(*static, "mask", "weight_dimension_numbers")
    )
    params = {"kernel": jnp.ones((8, 16)), "norm": jnp.ones(16)}
    mask = lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)  # noqa: E731
    with pytest.raises(TypeError, match=r"mask must be a function.*static_args=\('rank'.*'mask'"):
        inject(1e-2, rank=4, mask=mask, weight_decay=10.0).init(params)
    with pytest.raises(TypeError, match=r"static_args=\(.*'weight_dimension_numbers'\)"):
        inject(1e-2, rank=4, weight_dimension_numbers=fira_jax.match_paths("k")).init(params)
    direct = fira_jax.fira(1e-2, rank=4, mask=mask, weight_decay=10.0)
    tx = told(
        1e-2,
        rank=4,
        mask=mask,
        weight_decay=10.0,
        weight_dimension_numbers=fira_jax.match_paths("kernel"),
    )
    for x, y in zip(
        *(jax.tree.leaves(t.update(params, t.init(params), params)[0]) for t in (direct, tx)),
        strict=True,
    ):
        assert jnp.allclose(x, y, rtol=1e-5)

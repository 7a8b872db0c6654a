"""A gradient of zeros is silent and differentiable, in every method."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from family import METHODS, VARIANTS, build, gradients, params
from jax.experimental import checkify

import fira_jax
from fira_jax.codes import encode_log
from fira_jax.norms import root
from fira_jax.transforms.coordinates import one_minus_power

# Of the others, one for each kind of state; test-slow has the rest.
ALWAYS = ("fira", "lotus", "racs", "vlorp")


@pytest.fixture(autouse=True)
def quick_compilation():
    """What is tested does not depend on how fast the program is."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def slow_unless(variant, always):
    return pytest.param(variant, marks=[] if variant in always else pytest.mark.slow)


@pytest.mark.parametrize("variant", [slow_unless(v, ALWAYS) for v in VARIANTS])
def test_no_false_alarm_and_finite_derivatives(variant):
    """Neither 0/0 before a ``where`` nor an infinite derivative, in the step or through it."""
    tx, weights = build(variant), params(variant)

    def size(grads, state):
        updates, state = tx.update(grads, state, weights)
        return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(updates)), state

    through = jax.value_and_grad(size, has_aux=True)
    step = jax.jit(checkify.checkify(through, errors=checkify.float_checks))
    dense = gradients(variant, 1)
    zero = jax.tree.map(jnp.zeros_like, dense)
    one_column = jax.tree.map(lambda x: x.at[..., 0].set(0), dense)
    state = tx.init(weights)
    for grads in (zero, one_column, zero, dense):
        error, ((_, state), derivative) = step(grads, state)
        assert error.get() is None
        assert all(jnp.isfinite(x).all() for x in jax.tree.leaves((state, derivative)))


@pytest.mark.parametrize("state", [0.0, 1.0])
def test_root_has_a_derivative_at_zero(state):
    assert jax.grad(root)(0.0) == 0
    assert jax.grad(root)(4.0) == 0.25
    assert jax.grad(jax.grad(root))(0.0) == 0
    assert root(jnp.float32(state)) == state


def test_adam_has_the_true_derivative_at_zero():
    """Of m / (sqrt(v) + eps) after a first gradient of zero: (1 - b1) / eps, as finite
    differences within eps of it have it."""
    tx = fira_jax.scale_by_adam_in_subspace(
        fira_jax.LowRank(2), 0.9, 0.999, eps=1.0, bias_correction="none"
    )

    def update(g):
        return tx.update({"b": g}, tx.init({"b": g}))[0]["b"][0]

    assert jnp.allclose(jax.grad(update)(jnp.zeros(2)), jnp.array([0.1, 0.0]))


def test_nothing_infinite_is_computed_on_the_way():
    """Operation by operation: checkify does not look for infinities."""
    with jax.debug_nans(True), jax.debug_infs(True):
        codes, scales = encode_log(jnp.zeros((2, 8)))
        corrections = [one_minus_power(b1, jnp.int32(1)) for b1 in (0.0, jnp.float32(0))]
    assert (codes == 0).all()
    assert (scales == 0).all()
    assert corrections == [1, 1]


@pytest.mark.parametrize("method", METHODS)
def test_a_fresh_state_can_be_donated(method):
    """No two of its arrays share a buffer."""
    arrays = jax.tree.leaves(build(method).init(params(method)))
    buffers = [x.unsafe_buffer_pointer() for x in arrays]
    assert len(set(buffers)) == len(buffers)

"""What is random depends on the seed and the step alone, not on JAX's settings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family import VARIANTS, build, params

from fira_jax.jax_internals import inner_programs
from fira_jax.random_bits import hashed, key_of, normal, words_of

SETTINGS = {
    "not partitionable": lambda: jax.threefry_partitionable(False),
    "another generator": lambda: jax.default_prng_impl("rbg"),
    "x64": lambda: jax.enable_x64(True),
}


def primitives(jaxpr):
    """Names of all operations of a program and of those inside it."""
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name
        for inner in inner_programs(eqn):
            yield from primitives(inner)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_random_numbers_of_jax(variant):
    """Keys are mixed by JAX, which its settings leave alone; numbers are drawn by our own hash."""
    tx, weights = build(variant), params(variant)
    state = jax.eval_shape(tx.init, weights)
    program = jax.make_jaxpr(tx.update)(weights, state, weights)
    used = {name for name in primitives(program.jaxpr) if "random" in name or "threefry" in name}
    assert used <= {"random_seed", "random_fold_in", "random_unwrap", "random_wrap"}


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_change_no_number(setting):
    def draw():
        return np.asarray(hashed(words_of(key_of(3, 2)), (2, 3)))

    usual = draw()
    with SETTINGS[setting]():
        assert (draw() == usual).all()


def test_normal_numbers_are_normal():
    bits = hashed(words_of(key_of(0, 1)), (300, 400))
    x = np.asarray(normal(bits), np.float64)
    assert np.isfinite(normal(jnp.array([0, 2**32 - 1], jnp.uint32))).all()
    # Within five standard errors of each moment.
    for power, mean, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(np.mean(x**power) - mean) < 5 * (spread / x.size) ** 0.5
    # Rows and columns do not resemble their neighbors.
    for a, b in ((x[1:], x[:-1]), (x[:, 1:], x[:, :-1])):
        assert abs(np.mean(a * b)) < 5 / a.size**0.5

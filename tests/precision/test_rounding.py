"""Stochastic rounding: unbiased, exact on resume, and what it is for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import normal

import fira_jax
from fira_jax.precision.stochastic_rounding import stochastic_bfloat16
from fira_jax.random_bits import random_bits, uniform

BF16 = jnp.bfloat16


def wide(x) -> np.ndarray:
    return np.asarray(x, np.float64)


@pytest.fixture(scope="module")
def rounded():
    """Numbers of all sizes and signs, and 4,096 independent roundings of each."""
    x = normal(0, 64) * 2.0 ** np.arange(-120, 72, 3)
    x[:4] = [1.0, -1.5, 0.0, 1.0 + 2**-20]
    many = np.repeat(x[:, None], 4096, axis=1).astype(np.float32)
    found = jax.jit(stochastic_bfloat16)(many, random_bits(0, 0, "w", many.shape))
    return x.astype(np.float32), wide(found)


def neighbours(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bfloat16 numbers around each float32, towards zero and away from it."""
    cut = x.view(np.uint32) & 0xFFFF0000
    return wide(cut.view(np.float32)), wide((cut + 0x10000).view(np.float32))


def test_the_result_is_a_neighbour(rounded):
    x, found = rounded
    below, above = neighbours(x)
    for value, low, high, got in zip(x, below, above, found, strict=True):
        assert set(got) <= {low, high}, value
    np.testing.assert_array_equal(found[:3], x[:3, None] * np.ones(4096))  # what is exact, stays


def test_unbiased(rounded):
    """The mean over roundings is within four standard errors of the number, for each of them."""
    x, found = rounded
    below, above = neighbours(x)
    share = (x - below) / (above - below)
    error = (found.mean(axis=1) - x) / (above - below)
    assert (np.abs(error) <= 4 * np.sqrt(share * (1 - share) / found.shape[1]) + 1e-4).all()
    shares = (found != found.min(axis=1, keepdims=True)).mean(axis=1)
    assert 0.3 < shares.mean() < 0.7  # and it did round


def test_what_is_not_finite_stays():
    x = np.array([np.nan, np.inf, -np.inf, jnp.finfo(BF16).max], np.float32)
    found = stochastic_bfloat16(x, jnp.full(4, 0xFFFFFFFF, jnp.uint32))
    np.testing.assert_array_equal(found.astype(jnp.float32), x)


def test_small_updates_add_up():
    """A thousand updates of 1e-4 each, all lost by rounding to the nearest."""
    params = {"w": jnp.ones(2048, BF16), "b": jnp.ones(3)}
    tx = optax.chain(optax.scale(-1.0), fira_jax.precision.round_stochastically())

    def train(tx):
        @jax.jit
        def run(params, state):
            def step(carry, _):
                params, state = carry
                grads = jax.tree.map(lambda p: jnp.full(p.shape, 1e-4, p.dtype), params)
                updates, state = tx.update(grads, state, params)
                return (optax.apply_updates(params, updates), state), None

            return jax.lax.scan(step, (params, state), length=1000)[0]

        return run(params, tx.init(params))

    lost, _ = train(optax.scale(-1.0))
    assert (lost["w"] == 1).all()
    got, state = train(tx)
    assert (got["w"].dtype, got["b"].dtype) == (BF16, jnp.float32)
    assert abs(wide(got["w"]).mean() - 0.9) < 2e-3
    np.testing.assert_array_equal(got["b"], lost["b"])  # float32 rounds as ever
    assert int(state[1].count) == 1000


def test_resumed_run_rounds_alike_and_no_two_steps_or_weights_do():
    params = {"v": jnp.ones((8, 64), BF16), "w": jnp.ones((8, 64), BF16)}
    updates = jax.tree.map(lambda p: jnp.full(p.shape, 1e-3), params)
    tx = fira_jax.precision.round_stochastically(seed=3)
    state = tx.init(params)
    first, after = tx.update(updates, state, params)
    second, _ = tx.update(updates, after, params)
    again, _ = jax.jit(tx.update)(updates, jax.tree.map(np.asarray, after), params)
    jax.tree.map(np.testing.assert_array_equal, second, again)
    other = fira_jax.precision.round_stochastically(seed=4).update(updates, state, params)[0]
    for a, b in ((first["w"], second["w"]), (first["w"], first["v"]), (first["w"], other["w"])):
        assert 0.05 < np.mean(wide(a) != wide(b)) < 0.95


def test_the_update_lands_exactly_on_the_rounded_weight():
    params = jnp.asarray(normal(0, 4096), BF16)
    updates = jnp.asarray(normal(1, 4096))
    tx = fira_jax.precision.round_stochastically()
    new = optax.apply_updates(params, tx.update(updates, tx.init(params), params)[0])
    bits = random_bits(0, 0, "", params.shape)
    expected = stochastic_bfloat16(params.astype(jnp.float32) + updates, bits)
    np.testing.assert_array_equal(new.astype(jnp.float32), expected.astype(jnp.float32))


def test_it_needs_the_parameters():
    tx = fira_jax.precision.round_stochastically()
    with pytest.raises(ValueError, match="give them to update"):
        tx.update({"w": jnp.ones(3)}, tx.init({"w": jnp.ones(3)}))


def test_random_numbers_are_uniform_and_independent():
    """By moments and correlations, along each axis, between steps, names and seeds."""
    make = jax.jit(lambda seed, step: uniform(random_bits(seed, step, "w", (256, 256))))
    x = wide(make(0, 0))
    standard = (x - 0.5) * np.sqrt(12)
    n = x.size
    assert abs(standard.mean()) < 4 / np.sqrt(n)
    assert abs((standard**2).mean() - 1) < 4 / np.sqrt(n)
    counts = np.histogram(x, 64, (0, 1))[0]
    assert ((counts - n / 64) ** 2 / (n / 64)).sum() < 64 + 4 * np.sqrt(2 * 64)
    others = {
        "row": np.roll(x, 1, 0),
        "column": np.roll(x, 1, 1),
        "step": wide(make(0, 1)),
        "seed": wide(make(1, 0)),
        "transposed": x.T,
        "name": wide(uniform(random_bits(0, 0, "v", (256, 256)))),
    }
    for name, other in others.items():
        kept = ~np.eye(256, dtype=bool) if name == "transposed" else np.ones((256, 256), bool)
        correlation = (standard * (other - 0.5) * np.sqrt(12))[kept].mean()
        assert abs(correlation) < 4.5 / np.sqrt(n), name


def test_random_numbers_go_by_position_only():
    shape = (3, 4, 5)
    flat = random_bits(0, 7, "w", (12, 5))
    np.testing.assert_array_equal(random_bits(0, 7, "w", shape), flat.reshape(shape))
    assert random_bits(0, 7, "w", ()).shape == ()

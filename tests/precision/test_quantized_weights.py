"""Weights in 8 bits: bytes, unbiased updates, and that what does not move stays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import normal

import fira_jax

SHAPES = {"wide": (16, 600), "stack": (3, 64, 256), "norm": (4096,), "small": (8, 8)}


quantize, dequantize = (
    jax.jit(fira_jax.precision.quantize_weights),
    jax.jit(fira_jax.precision.dequantize_weights),
)


def params(dtype=jnp.float32) -> dict[str, jax.Array]:
    return {k: jnp.asarray(0.02 * normal(i, *s), dtype) for i, (k, s) in enumerate(SHAPES.items())}


def test_what_is_stored():
    """Matrices of 4,096 numbers and more: a byte each, and 5 for each group of 256 in a row."""
    weights = quantize(params(jnp.bfloat16))
    groups = {"wide": 16 * 3, "stack": 3 * 64}
    for name, shape in SHAPES.items():
        if name in groups:
            assert weights[name].codes.shape == shape
            size = sum(x.nbytes for x in jax.tree.leaves(weights[name]))
            assert size == np.prod(shape) + 5 * groups[name]
        else:
            np.testing.assert_array_equal(weights[name], params(jnp.bfloat16)[name])
    found = dequantize(weights)
    assert {x.dtype for x in found.values()} == {jnp.dtype(jnp.bfloat16)}
    for name in groups:
        exact = np.asarray(params()[name])
        gap = np.abs(np.asarray(found[name], np.float32) - exact)
        assert gap.max() < 1.3 * np.ptp(exact) / 250  # one level
        assert gap.mean() > 0


def test_mask_chooses():
    for mask in ({k: k == "stack" for k in SHAPES}, lambda p: {k: k == "stack" for k in p}):
        weights = fira_jax.precision.quantize_weights(params(), mask=mask)
        kinds = {
            name: isinstance(w, fira_jax.precision.QuantizedWeight) for name, w in weights.items()
        }
        assert kinds == {"wide": False, "stack": True, "norm": False, "small": False}


def test_updates_far_below_a_level_add_up_and_what_does_not_move_stays():
    """The mean of all weights follows, step by step; a zero update changes not a single one."""
    start = quantize(params())
    before = dequantize(start)
    steps, rate = 400, 2e-6  # levels are 6e-4 apart
    updates = jax.tree.map(lambda x: jnp.full(x.shape, rate), before)
    updates["stack"] = updates["stack"].at[1].set(0)

    @jax.jit
    def train(weights):
        def step(weights, i):
            return fira_jax.precision.apply_quantized_updates(weights, updates, i), None

        return jax.lax.scan(step, weights, jnp.arange(steps))[0]

    end = train(start)
    after = dequantize(end)
    moved = {k: np.asarray(after[k] - before[k], np.float64) for k in SHAPES}
    # But where rounding carried a group's ends beyond its levels, which then had to be spread.
    same = np.asarray(end["stack"].spacing == start["stack"].spacing)[1, :, 0]
    assert same.mean() > 0.9
    assert (moved["stack"][1][same] == 0).all()
    for name, change in (("wide", moved["wide"]), ("stack", moved["stack"][[0, 2]])):
        error = change.mean() - steps * rate
        assert abs(error) < 5 * change.std() / np.sqrt(change.size) + 1e-7, name
        assert abs(error) < 0.15 * steps * rate, name
        assert 0.02 < (np.abs(change) > 1e-4).mean() < 0.9, name  # some by a level, most not at all
    np.testing.assert_allclose(moved["norm"], steps * rate, rtol=1e-2)


def test_both_ends_of_a_group_are_unbiased():
    """The largest and smallest of a group are not cut off, which would pull them inwards."""
    x = np.zeros((4096, 256), np.float32)
    x[:, 0], x[:, 1] = 0.731, -0.377
    found = np.asarray(dequantize(quantize({"w": x}))["w"])
    for column in (0, 1):
        values = found[:, column].astype(np.float64)
        assert abs(values.mean() - x[0, column]) < 4.5 * values.std() / 64 + 1e-7
        assert len(set(values.tolist())) == 2


def test_resume_seed_and_position_decide_the_rounding():
    weights = quantize(params())
    updates = jax.tree.map(lambda x: jnp.full(x.shape, 1e-4), params())
    apply = jax.jit(fira_jax.precision.apply_quantized_updates, static_argnames=())

    def codes(step, seed=0):
        return np.asarray(apply(weights, updates, step, seed=seed)["stack"].codes)

    np.testing.assert_array_equal(codes(3), codes(jnp.int32(3)))
    for other in (codes(4), codes(3, seed=1)):
        assert 0.01 < (codes(3) != other).mean() < 0.5


def test_trains_beside_float32():
    """Q-GaLore's weights: a quadratic comes down as far as levels let it."""
    target = jnp.asarray(0.1 * normal(0, 64, 256))
    tx = optax.chain(optax.scale_by_adam(), optax.scale_by_learning_rate(1e-3))

    @jax.jit
    def train(weights):
        def step(carry, i):
            weights, state = carry
            w = dequantize(weights)
            updates, state = tx.update({"w": w["w"] - target}, state, w)
            return (fira_jax.precision.apply_quantized_updates(weights, updates, i), state), None

        state = tx.init(dequantize(weights))
        return jax.lax.scan(step, (weights, state), jnp.arange(400))[0][0]

    found = train(quantize({"w": jnp.zeros((64, 256))}))
    gap = dequantize(found)["w"] - target
    assert float(jnp.sqrt(jnp.mean(gap**2))) < 0.006  # at 0.1 at first; levels are 0.003 apart


def test_errors():
    with pytest.raises(ValueError, match="group must be at least 1, got 0"):
        fira_jax.precision.quantize_weights(params(), group=0)
    weights = quantize(params())
    with pytest.raises(ValueError, match=r"updates have 1 leaves .* initialized for 4"):
        fira_jax.precision.apply_quantized_updates(weights, {"wide": jnp.zeros((16, 600))}, 0)


def test_some_rows_at_a_time_give_the_same():
    params = {"w": jnp.asarray(normal(0, 3, 5, 40)), "bias": jnp.ones(7)}
    stored = fira_jax.precision.quantize_weights(params, group=16, min_size=1)
    updates = {"w": 1e-3 * jnp.asarray(normal(1, 3, 5, 40)), "bias": jnp.ones(7)}

    def both(rows):
        new = fira_jax.precision.apply_quantized_updates(stored, updates, 3, rows_at_a_time=rows)
        return new, fira_jax.precision.dequantize_weights(new, rows_at_a_time=rows)

    at_once, by_rows = map(jax.jit(both, static_argnums=0), (None, 4))
    jax.tree.map(np.testing.assert_array_equal, at_once, by_rows)
    assert np.any(by_rows[0]["w"].codes != stored["w"].codes)

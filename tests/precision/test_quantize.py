"""State in 8 bits: the code, that averages arrive, bytes, and what the wrapper leaves alone."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import Kept, normal, run

import fira_jax
from fira_jax.codes import blocks, decode_linear, decode_log, encode_linear, encode_log, unblocks
from fira_jax.random_bits import random_bits

ENCODE = jax.jit(encode_log)


def spread(seed: int, *shape: int, octaves: float = 6.0) -> np.ndarray:
    """Normal numbers whose scales differ by orders of magnitude."""
    rng = np.random.default_rng(seed)
    scales = 2.0 ** rng.normal(0, octaves / 2, shape)
    return (rng.standard_normal(shape) * scales).astype(np.float32)


# --- the code -----------------------------------------------------------------------------------


def levels(signed: bool, scale: float) -> np.ndarray:
    """What each of the 256 codes stands for, from the formula, in float64."""
    codes = np.arange(256)
    if not signed:
        return np.where(codes > 0, scale * 2.0 ** ((codes - 255) / 8), 0)
    size = codes % 128
    return np.where(size > 0, scale * 2.0 ** ((size - 127) / 8), 0) * np.where(codes < 128, 1, -1)


@pytest.mark.parametrize("signed", [True, False])
def test_codes_stand_for_what_the_formula_says(signed):
    scale = np.float32(-3.7 if signed else 3.7)
    found = decode_log(jnp.arange(256, dtype=jnp.uint8), jnp.array([scale]))
    np.testing.assert_allclose(found, levels(signed, abs(float(scale))), rtol=2e-6)


@pytest.mark.parametrize("signed", [True, False])
def test_nearest_level_of_each_number(signed):
    x = spread(0, 16, 256)
    x = x if signed else np.square(x)
    codes, scales = ENCODE(x)
    assert (np.asarray(scales < 0) == signed).all()
    np.testing.assert_array_equal(np.abs(scales[:, 0]), np.abs(x).max(axis=1))
    for row, row_codes, scale in zip(x, np.asarray(codes), np.asarray(scales[:, 0]), strict=True):
        table = levels(signed, abs(float(scale)))
        distance = np.abs(row[:, None].astype(np.float64) - table[None])
        if not signed:
            distance[row > 0, 0] = np.inf  # a second moment is never taken for zero
        chosen = distance[np.arange(256), row_codes]
        assert (chosen <= distance.min(axis=1) * (1 + 1e-4) + 1e-6 * np.abs(row)).all()
    once = decode_log(codes, scales)
    np.testing.assert_allclose(decode_log(*ENCODE(once)), once, rtol=1e-6)  # a level stays


@pytest.mark.parametrize("signed", [True, False])
def test_stochastic_rounding_is_unbiased(signed):
    """The mean of many roundings of each number, within 4.5 standard errors."""
    x = spread(1, 256, octaves=4)
    x = x if signed else np.square(x)
    many = np.tile(x, (4096, 1))
    codes, scales = ENCODE(many, random_bits(0, 0, "", many.shape))
    found = np.asarray(decode_log(codes, scales), np.float64)
    table = np.sort(levels(signed, np.abs(x).max()))
    above = table[np.searchsorted(table, x).clip(1, 255)]
    below = table[np.searchsorted(table, x).clip(1, 255) - 1]
    inside = np.abs(x) > table[table > 0].min()
    error = (found.mean(axis=0) - x) / (above - below)
    share = np.clip((x - below) / (above - below), 0, 1)
    allowed = 4.5 * np.sqrt(share * (1 - share) / len(many)) + 1e-4
    assert inside.mean() > 0.9
    assert (np.abs(error) <= allowed)[inside].all()
    assert (np.ptp(found, axis=0) > 0).mean() > 0.9


def test_moments_too_small_for_their_codes_do_not_blow_up():
    """The ratio m / sqrt(v) of entries near and beyond the last level, however each is rounded."""
    g = np.float32(2.0) ** -np.linspace(0, 40, 256)
    m, v = np.tile(g * np.where(np.arange(256) % 2, 1, -1), (64, 1)), np.tile(g * g, (64, 1))
    exact = np.abs(m / np.sqrt(np.maximum(v, 1e-30)))
    for random in (None, random_bits(0, 0, "", m.shape)):
        m8, v8 = (np.asarray(decode_log(*ENCODE(x, random))) for x in (m, v))
        assert (v8 > 0).all()
        assert (np.abs(m8) / np.sqrt(v8)).max() < 1.2 * exact.max()
    linear = encode_linear(jnp.asarray(v), 8)  # which is why levels are not evenly spread
    v8 = np.asarray(decode_linear(linear, 8))
    assert (np.abs(m) / (np.sqrt(v8) + 1e-8)).max() > 1e3


def test_zero_tiny_and_broken_blocks():
    x = np.zeros((4, 8), np.float32)
    x[1] = 1e-42  # subnormal
    x[2, 3] = -5.0
    x[3, 0] = np.nan
    found = np.asarray(decode_log(*ENCODE(x)))
    np.testing.assert_array_equal(found[:3], np.where(np.arange(3)[:, None] == 1, 0, x[:3]))
    assert np.isnan(found[3]).any()


def test_blocks_are_cut_and_joined():
    x = normal(0, 2, 3, 10)
    cut = blocks(x, 4)
    assert cut.shape == (2, 3, 3, 4)
    assert (cut[..., 2, 2:] == 0).all()
    np.testing.assert_array_equal(unblocks(cut, 10), x)


# --- the wrapper --------------------------------------------------------------------------------


def test_state_bytes_are_the_formula():
    """n codes and one float32 for each block of 256 along the last axis; all else as it was."""
    params = {
        "wide": jnp.zeros((32, 1000)),  # r * 1000 numbers, 4 blocks a row
        "tall": jnp.zeros((3, 600, 48)),
        "narrow": jnp.zeros((600, 10)),  # rank 10: 6,000 numbers
        "small": jnp.zeros((64, 60)),  # 16 * 64 numbers stay float32
        "norm": jnp.zeros(64),
    }
    low_rank = fira_jax.LowRank(16, weight_dimension_numbers=fira_jax.match_paths(exclude="norm"))
    adam = fira_jax.scale_by_adam_in_subspace(low_rank)
    state = jax.eval_shape(fira_jax.precision.quantize_state(adam).init, params)
    blocked = {"wide": 16 * 4, "tall": 3 * 16 * 3, "narrow": 10 * 3}
    numbers = {"wide": 16 * 1000, "tall": 3 * 16 * 600, "narrow": 10 * 600}
    for moment, scales in ((state.codes.mu, state.scales.mu), (state.codes.nu, state.scales.nu)):
        for name, count in numbers.items():
            assert (moment[name].size, moment[name].dtype) == (count, jnp.uint8)
            assert (scales[name].size, scales[name].dtype) == (blocked[name], jnp.float32)
        assert {moment[name].dtype for name in ("small", "norm")} == {jnp.dtype(jnp.float32)}
        assert {type(scales[name]) for name in ("small", "norm")} == {optax.MaskedNode}
    described = fira_jax.describe(fira_jax.precision.quantize_state(adam), params)
    rows = {row.path: row.state_bytes for row in described.rows}
    for name, count in numbers.items():
        assert rows[name] == 2 * (count + 4 * blocked[name])
    assert rows["small"] == 2 * 4 * 16 * 64
    assert described.state_bytes == sum(rows.values()) + 2 * 4  # two counters


@functools.cache
def trajectories():
    """Updates of Adam in float32, and with its state in 8 bits, on gradients of many scales."""
    steps, shape = 300, (4, 512)
    scales = 2.0 ** np.random.default_rng(0).normal(0, 2, shape)
    target = np.random.default_rng(1).standard_normal(shape)
    grads = {"w": (normal(2, steps, *shape) + target) * scales}
    grads["b"] = grads["w"][:, 0, :8]
    adam = optax.scale_by_adam(b2=0.99)
    quantized = fira_jax.precision.quantize_state(adam, min_size=512)
    nearest = fira_jax.precision.quantize_state(adam, min_size=512, rounding="nearest")
    return {
        name: run(tx, jax.tree.map(jnp.float32, grads))
        for name, tx in {"exact": adam, "quantized": quantized, "nearest": nearest}.items()
    }


def test_updates_stay_near_those_of_float32():
    found = trajectories()
    exact, _ = found["exact"]
    for name in ("quantized", "nearest"):
        updates, state = found[name]
        np.testing.assert_array_equal(updates["b"], exact["b"])  # small, so left alone
        gap = np.linalg.norm(updates["w"] - exact["w"]) / np.linalg.norm(exact["w"])
        assert 1e-3 < gap < 0.15, (name, gap)
        walked = updates["w"].sum(axis=0), exact["w"].sum(axis=0)
        gap = np.linalg.norm(walked[0] - walked[1]) / np.linalg.norm(walked[1])
        assert gap < 0.08, (name, gap)
        assert state.codes.mu["w"].dtype == state.codes.nu["w"].dtype == jnp.uint8


def test_a_second_moment_leaves_its_level_only_by_stochastic_rounding():
    """One entry of a block keeps its gradient, the gradients of the others fall to a half."""
    grads = np.ones((1200, 1, 512), np.float32)
    grads[600:, :, 1:] = 0.5
    steps = 600
    nu = 0.998**steps * (1 - 0.998**600) + (1 - 0.998**steps) * 0.25

    def last(rounding):
        inner = optax.scale_by_rms(decay=0.998)
        tx = fira_jax.precision.quantize_state(inner, min_size=512, rounding=rounding)
        state = run(tx, grads)[1]
        values = decode_log(blocks(state.codes.nu, 256), state.scales.nu[..., None])
        return np.asarray(values).reshape(-1)[1:256]

    assert abs(last("stochastic").mean() / nu - 1) < 0.03
    assert last("nearest").mean() / nu > 1.4


def test_exact_on_resume():
    params = {"w": jnp.zeros((8, 512))}
    grads = {"w": jnp.asarray(normal(0, 6, 8, 512))}
    tx = fira_jax.precision.quantize_state(optax.scale_by_adam(), seed=5)
    update = jax.jit(tx.update)
    states, state = [], tx.init(params)
    for i in range(6):
        states.append(jax.tree.map(np.asarray, state))
        _, state = update({"w": grads["w"][i]}, state)
    resumed = states[3]
    for i in range(3, 6):
        _, resumed = update({"w": grads["w"][i]}, resumed)
    jax.tree.map(np.testing.assert_array_equal, resumed, state)
    assert (np.asarray(states[4].codes.mu["w"]) != states[5].codes.mu["w"]).any()
    other_seed = fira_jax.precision.quantize_state(optax.scale_by_adam(), seed=6)
    _, other = jax.jit(other_seed.update)({"w": grads["w"][0]}, tx.init(params))
    assert 0.1 < np.mean(np.asarray(other.codes.mu["w"]) != states[1].codes.mu["w"]) < 0.9


def test_around_a_piece_of_a_chain_and_around_the_whole_of_it():
    """Nodes, masks, bfloat16 and extra arguments pass; the state's types do not change."""
    params = {"w": jnp.asarray(normal(0, 2, 64, 256), jnp.bfloat16), "b": jnp.ones(8, jnp.bfloat16)}
    choose = fira_jax.match_paths(exclude="b")
    low_rank = fira_jax.LowRank(16, 2, basis=Kept(), weight_dimension_numbers=choose)
    chain = optax.chain(
        fira_jax.low_rank_project(low_rank),
        fira_jax.precision.quantize_state(
            fira_jax.scale_by_adam_in_subspace(low_rank), min_size=64
        ),
        fira_jax.fira_residual_scale(),
        fira_jax.norm_growth_limit(low_rank),
        fira_jax.project_back(),
    )
    for tx in (
        chain,
        fira_jax.precision.quantize_state(optax.masked(chain, {"w": True, "b": False})),
    ):
        state = tx.init(params)
        updates, new = jax.jit(tx.update)(params, state, params, value=1.0)
        assert jax.tree.structure(new) == jax.tree.structure(state)
        types = [jax.tree.map(lambda x: (x.shape, x.dtype), s) for s in (state, new)]
        assert types[0] == types[1]
        for name, update in updates.items():
            assert (update.shape, update.dtype) == (params[name].shape, jnp.bfloat16)
            assert jnp.isfinite(update).all()
            assert jnp.abs(update).max() > 0


def test_map_params_reaches_codes_and_scales():
    tx = fira_jax.precision.quantize_state(optax.scale_by_adam(), min_size=1)
    state = tx.init({"w": jnp.ones((4, 8))})
    marked = optax.tree.map_params(tx, lambda x: x + 1, state)
    assert int(marked.codes.mu["w"][0, 0]) == 1
    assert float(marked.scales.nu["w"][0, 0]) == 1.0
    assert int(marked.count) == int(marked.codes.count) == 0


@pytest.mark.parametrize("name", ["block_size", "min_size"])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_are_positive(name, value):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got {value}"):
        fira_jax.precision.quantize_state(optax.scale_by_adam(), **{name: value})


def test_rounding_has_two_kinds():
    with pytest.raises(ValueError, match="rounding must be one of 'stochastic', 'nearest'"):
        fira_jax.precision.quantize_state(optax.scale_by_adam(), rounding="up")

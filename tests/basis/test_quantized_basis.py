"""Bases in 4 and 8 bits, and Q-GaLore on top of them, beside float64 references."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import Kept, LeadingColumns, normal, run

import fira_jax
from fira_jax.basis import Quantized
from fira_jax.codes import decode_linear, encode_linear


def reference_codes(x: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, scale and zero of groups ``[n, size]``, from the formula, in float64."""
    top = 2**bits - 1
    low, high = np.minimum(x.min(1, keepdims=True), 0), np.maximum(x.max(1, keepdims=True), 0)
    scale = np.where(high > low, (high - low) / top, 1)
    zero = np.round(-low / scale)
    return np.clip(np.round(x / scale) + zero, 0, top), scale, zero


def dequantized(x: np.ndarray, bits: int, group: int) -> np.ndarray:
    """What a matrix becomes by being stored in groups of its entries, row by row, in float64."""
    flat = x.reshape(-1).astype(np.float64)
    rows = np.pad(flat, (0, -flat.size % group)).reshape(-1, group)
    codes, scale, zero = reference_codes(rows, bits)
    return (scale * (codes - zero)).reshape(-1)[: flat.size].reshape(x.shape)


# --- the code -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_are_the_formula_packed(bits):
    x = normal(0, 6, 32) * np.float32(0.1)
    x[1] = np.abs(x[1]) + 1  # of one sign, far from zero
    x[2] = -np.abs(x[2]) - 1
    x[3] = 0
    x[4] = 0.7
    stored = jax.jit(encode_linear, static_argnums=1)(x, bits)
    codes, scale, zero = reference_codes(x.astype(np.float64), bits)
    assert stored.codes.nbytes == x.size * bits // 8
    np.testing.assert_allclose(stored.spacing, scale, rtol=1e-6)
    np.testing.assert_array_equal(stored.origin, zero)
    found = np.asarray(decode_linear(stored, bits))
    np.testing.assert_allclose(found, scale * (codes - zero), rtol=1e-5, atol=1e-7)
    # At most half a level away, and another half at the ends, where zero's rounding cuts off.
    assert (np.abs(found - x) <= scale * 1.001).all()
    np.testing.assert_allclose(found[1:5], x[1:5], atol=float(scale[1:3].max()))


def test_a_group_of_one_sign_keeps_its_values():
    """By the released formula, whose range need not hold zero, these would all be equal."""
    x = jnp.array([[1.0, 1.2, 1.5, 2.0]])
    found = np.asarray(decode_linear(encode_linear(x, 4), 4))
    np.testing.assert_allclose(found, x, atol=1 / 15)
    assert len(set(found[0].tolist())) == 4


# --- the basis ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "rank", "bits", "group"), [(64, 16, 4, 256), (20, 7, 4, 32), (20, 7, 8, 256)]
)
def test_what_a_basis_takes_and_stands_for(a, rank, bits, group):
    vectors = np.linalg.qr(normal(1, a, rank))[0].astype(np.float32)
    basis, given = (Quantized(inner, bits, group) for inner in (Kept(), LeadingColumns()))

    @jax.jit
    def there_and_back(vectors):
        """The basis at the start and ``vectors``, each as stored and as read."""
        key = jax.random.key(0)
        start = basis.init(a, rank, jnp.float32)
        stored = [
            start,
            basis.find(jnp.zeros((a, a)), start, rank, key),
            given.find(vectors, start, rank, key),
        ]
        return stored, [basis.vectors(x, a, rank, jnp.float32, key) for x in stored]

    stored, (start, kept, found) = there_and_back(vectors)
    for x in stored:
        assert sum(y.nbytes for y in x) == math.ceil(a * rank / group) * (group * bits // 8 + 5)
    for x in (start, kept):
        np.testing.assert_allclose(x, np.eye(a, rank), atol=1e-6)  # ones and zeros are exact
    np.testing.assert_allclose(found, dequantized(vectors, bits, group), rtol=1e-4, atol=1e-6)
    rough = np.abs(np.asarray(found).T @ found - np.eye(rank)).max()
    assert 1e-4 < rough < (0.35 if bits == 4 else 0.03)


PARAMS = {
    "wide": (8, 24),
    "tall": (24, 8),
    "stack": (3, 8, 24),
    "again": (8, 24),
}


def tree(seed: int, *batch: int) -> dict[str, np.ndarray]:
    return {k: normal(seed + i, *batch, *s) for i, (k, s) in enumerate(PARAMS.items())}


def low_rank(basis: Any, **options: Any) -> fira_jax.LowRank:
    return fira_jax.LowRank(
        4, 3, basis=basis, weight_dimension_numbers=fira_jax.match_paths(), **options
    )


def test_each_matrix_gets_its_own_basis_quantized():
    """However they are stacked and grouped, at each of two refreshes."""
    grads = tree(0, 4)
    project = fira_jax.low_rank_project(low_rank(Quantized(fira_jax.basis.Svd())))

    @jax.jit
    def bases_and_coordinates(grads):
        def step(state, grad):
            nodes, state = project.update(grad, state)
            return state, {name: (node.basis, node.raw) for name, node in nodes.items()}

        return jax.lax.scan(step, project.init(jax.tree.map(lambda g: g[0], grads)), grads)[1]

    for name, (found, raw) in jax.tree.map(np.asarray, bases_and_coordinates(grads)).items():
        for t, *at in np.ndindex(found.shape[:-2]):
            grad, refreshed = (grads[name][(u, *at)] for u in (t, t - t % 3))
            grad, refreshed = (x.T if name == "tall" else x for x in (grad, refreshed))
            left = np.linalg.svd(refreshed)[0][:, :4]
            left = left * np.sign(left[np.abs(left).argmax(0), range(4)])
            here = found[(t, *at)]
            # A value half-way between two levels may go either way.
            assert np.mean(np.abs(here - dequantized(left, 4, 256)) > 1e-5) < 0.1, (name, t)
            np.testing.assert_allclose(raw[(t, *at)], here.T @ grad, atol=1e-4)


def test_describe_and_shardings_see_through_the_parts():
    params = {
        "a": {"codes": jnp.zeros((64, 256))},
        "norm": jnp.zeros(3),
        "w": jnp.zeros((64, 256)),
    }
    choose = fira_jax.match_paths(exclude="norm")
    tx = fira_jax.q_galore(1e-2, rank=16, weight_dimension_numbers=choose)
    described = fira_jax.describe(tx, params)
    each = 4 * (128 + 5) + 2 * (16 * 256 + 4 * 16) + 4 * (5 + 1)
    assert [row.state_bytes for row in described.rows] == [each, 24, each]
    assert described.state_bytes == 2 * each + 24 + 3 * 4  # and three counters

    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec
    over = jax.tree.map(
        lambda p: jax.sharding.NamedSharding(mesh, spec(*("d", None)[: p.ndim])), params
    )
    state = fira_jax.state_shardings(tx, params, over)
    assert jax.tree.structure(state) == jax.tree.structure(jax.eval_shape(tx.init, params))
    assert {tuple(x.spec) for x in state[0].bases["w"]} == {("d", None)}
    assert tuple(state[1].codes.mu["w"].spec) == (None, "d")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 3}, "bits must be 4 or 8, got 3"),
        ({"group": 0}, "group must be even and at least 2, got 0"),
        ({"group": 5}, "group must be even and at least 2, got 5"),
        ({"inner": fira_jax.basis.Dct()}, r"stores its vectors can be quantized, got Dct"),
        ({"inner": fira_jax.basis.Random()}, r"can be quantized, got Random\(\)"),
    ],
)
def test_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        Quantized(**options)


def test_moments_cannot_be_carried():
    with pytest.raises(ValueError, match="moments='carry' needs a basis of orthonormal vectors"):
        low_rank(Quantized(), moments="carry")


# --- Q-GaLore -----------------------------------------------------------------------------------


def reference_q_galore(
    grads: np.ndarray, *, rank: int, gap: int, lr: float, alpha: float, bits: int, group: int
) -> tuple[list[np.ndarray], list[int]]:
    """One wide matrix, its moments in float64: the weights after each step, the refreshes' steps.

    Written from the paper: gaps double while the leading direction stays put.
    """
    b1, b2, eps = 0.9, 0.999, 1e-8
    weight, m, v = np.zeros(grads.shape[1:]), 0.0, 0.0
    queue: list[float] = []
    basis, walked, refreshes = None, [], []
    for t, grad in enumerate(grads.astype(np.float64)):
        if t % gap == 0:
            left = np.linalg.svd(grad)[0][:, :rank]
            left = left * np.sign(left[np.abs(left).argmax(0), range(rank)])
            new = dequantized(left, bits, group)
            if basis is not None:
                cosine = abs(basis[:, 0] @ new[:, 0])
                cosine /= np.linalg.norm(basis[:, 0]) * np.linalg.norm(new[:, 0])
                queue = [*queue, cosine][-5:]
                if len(queue) == 5 and np.mean(queue) >= 0.4:
                    gap *= 2
            basis = new
            refreshes.append(t)
        r = basis.T @ grad
        m, v = b1 * m + (1 - b1) * r, b2 * v + (1 - b2) * r**2
        step = (m / (1 - b1 ** (t + 1))) / (np.sqrt(v / (1 - b2 ** (t + 1))) + eps)
        weight = weight - lr * alpha * basis @ step
        walked.append(weight)
    return walked, refreshes


def steady_gradients(steps: int) -> np.ndarray:
    """Gradients with one strong direction that stays, others that come and go."""
    rng = np.random.default_rng(5)
    lasting = np.outer(rng.standard_normal(8), rng.standard_normal(24))
    return (4 * lasting + rng.standard_normal((steps, 8, 24))).astype(np.float32)


def test_q_galore_is_the_paper_with_ever_rarer_refreshes():
    steps, settings = 60, {"rank": 4, "lr": 0.01, "alpha": 0.25}
    grads = steady_gradients(steps)
    expected, refreshes = reference_q_galore(grads, gap=2, bits=8, group=256, **settings)
    assert refreshes == [0, 2, 4, 6, 8, 10, 12, 16, 32]
    tx = fira_jax.q_galore(0.01, 4, 2, 0.25, basis=Quantized(fira_jax.basis.Svd(), bits=8))
    updates, state = run(tx, grads, jnp.zeros((8, 24)))
    walked = np.cumsum(np.asarray(updates, np.float64), axis=0)
    for t in range(steps):
        scale = np.linalg.norm(expected[t])
        assert np.linalg.norm(walked[t] - expected[t]) < 2e-2 * scale, t
    assert int(jax.tree.leaves(state[0].memory)[0]) == 32


# --- made orthonormal again ----------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "a", "rank"), [(4, 64, 8), (4, 48, 48), (8, 96, 32)])
def test_the_nearest_orthonormal_vectors(bits, a, rank):
    """The polar factor of what the codes stand for, in float64 by an SVD."""
    key = jax.random.key(0)
    exact = np.linalg.qr(normal(3, a, rank).astype(np.float64))[0].astype(np.float32)
    rough, fine = (Quantized(LeadingColumns(), bits, orthonormal=x) for x in (False, True))
    stored = fine.find(jnp.asarray(exact), fine.init(a, rank, jnp.float32), rank, key)
    coded = np.asarray(rough.vectors(stored, a, rank, jnp.float32, key), np.float64)
    gap = {4: 0.02, 8: 1e-3}[bits]
    assert np.abs(coded.T @ coded - np.eye(rank)).max() > gap  # else there is nothing to do
    left, _, right = np.linalg.svd(coded, full_matrices=False)
    found = fine.vectors(stored, a, rank, jnp.float32, key)
    np.testing.assert_allclose(found, left @ right, atol=5e-6)


def test_moments_carried_between_quantized_bases_do_not_grow():
    """Refreshed at every step; by the rough vectors of 4 bits the squared overlaps exceed 1."""
    basis = Quantized(fira_jax.basis.PowerIteration(), orthonormal=True)
    low_rank = fira_jax.LowRank(12, 1, basis=basis, moments="carry")
    project = fira_jax.low_rank_project(low_rank)
    state = project.init({"w": jnp.zeros((32, 48))})
    for i in range(6):
        nodes, state = project.update({"w": jnp.asarray(normal(i, 32, 48))}, state)
        assert nodes["w"].orthonormal
        assert np.linalg.svd(nodes["w"].rotation, compute_uv=False).max() < 1 + 1e-5
        rough = Quantized().vectors(state.bases["w"], 32, 12, jnp.float32, None)
        assert np.linalg.svd(rough, compute_uv=False).max() > 1.01

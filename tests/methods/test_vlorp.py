"""VLoRP with ProjFactor against its released steps in NumPy float64."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers
from support import history, normal

import fira_jax

STEPS, GAP, RATE = 5, 2, 0.1


@functools.cache
def basis(period, a, rank):
    """The one of this period, drawn as the library draws it; as released, entries are N(0, 1)."""
    key = jax.random.fold_in(jax.random.key(0), period)
    vectors = fira_jax.basis.Random().vectors(None, a, rank, jnp.float32, key)
    return np.asarray(vectors, np.float64) * np.sqrt(rank)


def reference(grads, rank, pieces, scale, reset=False, b1=0.9, b2=0.999, eps=1e-6):
    """Gradients ``[rows, cols]`` with rows >= cols: pieces are cut from the columns."""
    rows, cols = grads.shape[1:]
    m = row = col = 0.0
    for t0, grad in enumerate(grads):
        p = basis(t0 // GAP, cols // pieces, rank)
        if reset and t0 % GAP == 0:
            m = 0.0

        def back(x, p=p):
            return (x @ p.T / rank).reshape(rows, cols) * scale

        projected = grad.reshape(rows * pieces, cols // pieces) @ p
        m = b1 * m + (1 - b1) * projected
        seen = back(projected)
        row = b2 * row + (1 - b2) * (seen**2).sum(1)
        col = b2 * col + (1 - b2) * (seen**2).sum(0)
        v = np.outer(row, col) / row.sum()
        age = t0 % GAP + 1 if reset else t0 + 1
        step = RATE * np.sqrt(1 - b2 ** (t0 + 1)) / (1 - b1**age)
        yield -step * back(m) / (np.sqrt(v) + eps)


@pytest.mark.parametrize(
    ("rank", "pieces", "moments"), [(2, 1, "keep"), (1, 4, "keep"), (2, 2, "reset")]
)
def test_steps_are_the_released_ones(rank, pieces, moments):
    shapes = {"tall": (9, 8), "wide": (8, 11), "stack": (2, 13, 8), "vector": (5,)}
    numbers = {k: None if k == "vector" else MuonDimensionNumbers(-2, -1) for k in shapes}
    with jax.enable_x64(True):
        grads = {
            k: normal(i, STEPS, *s, dtype=np.float64) for i, (k, s) in enumerate(shapes.items())
        }
        tx = fira_jax.vlorp(
            RATE, rank, GAP, 0.5, pieces=pieces, moments=moments, weight_dimension_numbers=numbers
        )
        updates, _ = history(tx, grads, {k: np.zeros(s) for k, s in shapes.items()})
        tall, wide = grads["tall"], grads["wide"].swapaxes(1, 2)
        matrices = {
            "tall": (updates["tall"], tall),
            "wide": (updates["wide"].swapaxes(1, 2), wide),
            "layer 0": (updates["stack"][:, 0], grads["stack"][:, 0]),
            "layer 1": (updates["stack"][:, 1], grads["stack"][:, 1]),
        }
        for name, (found, series) in matrices.items():
            expected = reference(series, rank, pieces, 0.5, moments == "reset")
            for t, update in enumerate(expected):
                # The random numbers are float32, and differ in the last digit inside a jit.
                np.testing.assert_allclose(
                    found[t], update, rtol=1e-5, atol=1e-6, err_msg=f"{name}, step {t}"
                )
    adam, _ = history(optax.adam(RATE, eps=1e-6), grads["vector"], np.zeros(5))
    np.testing.assert_allclose(updates["vector"], adam, rtol=1e-4)


def test_factors_of_a_structured_basis_are_those_of_its_vectors():
    """Of columns, whose vectors are never written out, against the same ones as an array."""
    low_rank = fira_jax.LowRank(2, basis="columns", scale=0.5)

    @jax.jit
    def both(grad):
        project = fira_jax.low_rank_project(low_rank)
        back = fira_jax.project_back_by_factors(low_rank)
        node = project.update(grad, project.init(grad))[0]
        written_out = node.replace(basis=node.basis.lift(jnp.eye(2)))
        return [back.update(n, back.init(grad)) for n in (node, written_out)]

    for x, y in zip(*map(jax.tree.leaves, both(jnp.asarray(normal(0, 6, 8)))), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-9)


def test_pieces_are_read_and_put_back_in_place():
    for shape, side in (((8, 12), "short"), ((12, 8), "short"), ((8, 12), "long")):
        low_rank = fira_jax.LowRank(
            4, side=side, pieces=2, weight_dimension_numbers=MuonDimensionNumbers(-2, -1)
        )
        view = low_rank.leaves({"w": jnp.zeros((3, *shape))})[0].view
        x = np.arange(3.0 * 96).reshape(3, *shape)
        matrices = np.asarray(view.to_matrix(jnp.asarray(x)))
        assert matrices.shape == (3, 2, *view.matrix_shape)
        axis = 1 if view.compress_input else 2
        np.testing.assert_array_equal(
            np.concatenate([matrices[:, 0], matrices[:, 1]], axis=axis), x
        )
        np.testing.assert_array_equal(view.from_matrix(jnp.asarray(matrices)), x)


def test_state_elements():
    state = jax.eval_shape(
        fira_jax.vlorp(RATE, 2, pieces=4).init, jax.ShapeDtypeStruct((8, 11), jnp.float32)
    )
    counters = 3  # of the projection, of ProjFactor, of Adam for all other parameters
    assert sum(x.size for x in jax.tree.leaves(state)) == 11 * 4 * 2 + 8 + 11 + counters


def test_inner_optimizer_sees_the_pieces():
    tx = fira_jax.vlorp(RATE, 2, scale=1.0, pieces=4, base_optimizer=optax.scale_by_sign())
    grad = jnp.asarray(normal(1, 8, 12))
    updates, _ = jax.jit(tx.update)(grad, tx.init(grad), grad)
    p = basis(0, 2, 2) / np.sqrt(2)
    expected = [p @ np.sign(p.T @ piece) for piece in np.split(np.asarray(grad), 4)]
    np.testing.assert_allclose(updates, -RATE * np.concatenate(expected), rtol=1e-5, atol=1e-7)


def test_errors():
    with pytest.raises(ValueError, match=r"'w' with shape \(6, 9\).* 6 .* into 4 pieces"):
        fira_jax.vlorp(RATE, 1, pieces=4).init({"w": jnp.ones((6, 9))})
    with pytest.raises(ValueError, match="has moments='keep' and 'reset', got 'carry'"):
        fira_jax.project_back_by_factors(fira_jax.LowRank(2, moments="carry"))
    with pytest.raises(ValueError, match="pieces must be at least 1, got 0"):
        fira_jax.vlorp(RATE, pieces=0)
    with pytest.raises(ValueError, match="mu_dtype must be a floating-point dtype, got int8"):
        fira_jax.vlorp(RATE, mu_dtype=jnp.int8)

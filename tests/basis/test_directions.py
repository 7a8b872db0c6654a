"""Bases that are never written out do what their written-out vectors would."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax.contrib import MuonDimensionNumbers
from support import normal

import fira_jax
from fira_jax.basis.columns import places

A, B, RANK = 11, 6, 4
KINDS = {
    "columns": fira_jax.basis.Columns(),
    "randk": fira_jax.basis.RandK(),
    "haar": fira_jax.basis.Haar(),
}


@functools.cache
def directions(kind):
    """Of two layers with bases of their own, after a refresh."""
    basis = KINDS[kind]

    @jax.jit
    def find(keys):
        old = basis.init(A, RANK, jnp.float32)
        if old is None:
            return basis.vectors(None, A, RANK, jnp.float32, keys[0])
        stored = jax.vmap(lambda key: basis.find(jnp.ones((A, B)), old, RANK, key))(keys)
        return basis.vectors(stored, A, RANK, jnp.float32, keys[0])

    return find(jax.random.split(jax.random.key(0), 2))


@functools.partial(jax.jit, static_argnames="batch")
def written_out(found, batch=(2,)):
    """The vectors of every column: ``[*batch, b, a, r]``."""
    units = jnp.broadcast_to(jnp.eye(RANK)[:, :, None], (*batch, RANK, RANK, B))
    lifted = [found.lift(units[..., i, :]) for i in range(RANK)]
    return jnp.moveaxis(jnp.stack(lifted, axis=-1), -2, -3)


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_orthonormal_and_products_are_theirs(kind):
    found = directions(kind)
    vectors = np.asarray(written_out(found))
    gram = np.einsum("lbar,lbaq->lbrq", vectors, vectors)
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(RANK), gram.shape), atol=1e-6)
    matrix, coordinates = normal(0, 2, A, B), normal(1, 2, RANK, B)
    projected = jax.jit(lambda found, x: found.project(x))(found, matrix)
    lifted = jax.jit(lambda found, x: found.lift(x))(found, coordinates)
    np.testing.assert_allclose(projected, np.einsum("lbar,lab->lrb", vectors, matrix), atol=1e-6)
    np.testing.assert_allclose(lifted, np.einsum("lbar,lrb->lab", vectors, coordinates), atol=1e-6)


def test_columns_pick_whole_rows_and_random_entries_differ_between_columns():
    whole, scattered = (np.asarray(written_out(directions(k))) for k in ("columns", "randk"))
    for vectors in (whole, scattered):
        assert set(np.unique(vectors)) == {0.0, 1.0}
    assert (whole == whole[:, :1]).all()
    assert not (scattered == scattered[:, :1]).all()


@pytest.mark.parametrize("kind", ["columns", "randk"])
def test_every_entry_is_as_likely_as_every_other(kind):
    basis = KINDS[kind]

    @jax.jit
    @jax.vmap
    def chosen(key):
        stored = basis.find(jnp.ones((A, B)), basis.init(A, RANK, jnp.float32), RANK, key)
        return basis.vectors(stored, A, RANK, jnp.float32, key).lift(jnp.ones((RANK, B)))

    share = np.asarray(chosen(jax.random.split(jax.random.key(3), 4000))).mean(0)
    deviation = np.sqrt(RANK / A * (1 - RANK / A) / 4000)
    assert abs(share - RANK / A).max() < 4.5 * deviation


def test_haar_is_the_approximation_of_a_wavelet_transform():
    """By the filter bank: pairwise sums over the root of two, level after level."""
    x = normal(0, 16, 3, dtype=np.float64)
    expected = x
    for _ in range(3):
        expected = (expected[0::2] + expected[1::2]) / np.sqrt(2)
    with jax.enable_x64(True):
        found = KINDS["haar"].vectors(None, 16, 2, jnp.float64, None).project(jnp.asarray(x))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_places():
    np.testing.assert_array_equal(places(jnp.array([1, 3]), 5), [2, 0, 2, 1, 2])


@pytest.mark.parametrize("kind", ["orthonormal", *KINDS])
def test_fira_over_every_kind_is_fira_over_its_vectors(kind):
    """The step of the walk against the formula with the basis written out, in one matrix."""
    tx = fira_jax.fira(
        1.0, RANK, basis=kind, gamma=None, b1=0.0, b2=0.0, eps=1e-3, side="input",
        weight_dimension_numbers=MuonDimensionNumbers(0, 1),
    )  # fmt: skip
    grad = jnp.asarray(normal(4, A, B))
    updates, state = jax.jit(tx.update)(grad, tx.init(grad), grad)
    key = jax.random.key(0)
    basis = fira_jax.basis.resolve(kind)
    stored = None if kind == "haar" else state[0].bases
    found = basis.vectors(stored, A, RANK, jnp.float32, key)
    if kind == "orthonormal":
        vectors = np.broadcast_to(np.asarray(found), (B, A, RANK))
        np.testing.assert_allclose(vectors[0].T @ vectors[0], np.eye(RANK), atol=1e-5)
    else:
        vectors = np.asarray(written_out(found, ()))
    raw = np.einsum("bar,ab->rb", vectors, grad)
    core = raw / (np.abs(raw) + 1e-3)
    phi = np.linalg.norm(core, axis=0) / (np.linalg.norm(raw, axis=0) + 1e-8)
    lifted = [np.einsum("bar,rb->ab", vectors, x) for x in (raw, core)]
    expected = 0.25 * lifted[1] + phi * (grad - 0.25 * lifted[0])
    np.testing.assert_allclose(updates, -expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_unusable_entry_outside_the_chosen_ones_is_noticed(kind):
    tx = fira_jax.fira(1.0, 2, basis=kind)
    grads = jnp.asarray(normal(5, 4, 9)).at[2:].set(jnp.inf)
    updates, state = jax.jit(tx.update)(grads, tx.init(grads), grads)
    assert not np.asarray(updates).any()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))

"""Oja's rule: orthonormal by products alone, and soon at the gradient's leading directions."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import normal, with_spectrum

import fira_jax
from fira_jax.basis.oja import Oja, polar
from fira_jax.jax_internals import inner_programs

A, B, RANK = 48, 80, 12
RESULTS = Path(__file__).parents[2] / "docs" / "results"
FACTORIZATIONS = {
    "cholesky",
    "eigh",
    "geqrf",
    "householder_product",
    "lu",
    "svd",
    "triangular_solve",
}


@functools.partial(jax.jit, static_argnames="rank")
def find(grad, stored, rank):
    return Oja().find(grad, stored, rank, jax.random.key(3))


def found(grads, rank=RANK):
    """The basis after each of the gradients ``[steps, a, b]``."""
    basis = Oja()
    stored, all_found = basis.init(grads.shape[1], rank, jnp.float32), []
    for grad in grads:
        unit = jnp.asarray(grad / np.abs(grad).max())
        stored = find(unit, stored, rank)
        all_found.append(np.asarray(stored, float))
    return all_found


def share(basis, grad):
    """Of the energy that any subspace of this rank can capture."""
    best = np.sum(np.linalg.svd(grad, compute_uv=False)[: basis.shape[1]] ** 2)
    return np.sum((basis.T @ grad) ** 2) / best


def primitives(jaxpr):
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in inner_programs(equation):
            yield from primitives(inner)


@pytest.mark.parametrize("shape", [(48, 12), (12, 12), (40, 1)])
@pytest.mark.parametrize("condition", [1.0, 30.0, 900.0])
def test_polar_is_the_nearest_orthonormal_matrix(shape, condition):
    a, k = shape
    x = with_spectrum(0, a, k, np.geomspace(1, condition, k))
    left, _, right = np.linalg.svd(x.astype(float), full_matrices=False)
    p = np.asarray(jax.jit(polar)(x), float)
    np.testing.assert_allclose(p.T @ p, np.eye(k), atol=2e-6)
    np.testing.assert_allclose(p, left @ right, atol=1e-3 if condition > 100 else 1e-5)


def test_one_step_is_the_formula():
    grad = normal(0, A, B)
    first = found(grad[None])[0]
    pull = grad @ (grad.T @ first)
    energy = np.sum((grad.T @ first) ** 2) / RANK
    left, _, right = np.linalg.svd(first + 3.0 * pull / energy, full_matrices=False)
    unit = jnp.asarray(grad / np.abs(grad).max())
    second = Oja(step=3.0, rounds=1).find(unit, jnp.float32(first), RANK, jax.random.key(0))
    np.testing.assert_allclose(second, left @ right, atol=1e-4)


@pytest.mark.parametrize("rank", [1, RANK, A])
def test_orthonormal_for_gradients_of_any_kind(rank):
    for seed in range(0, 60, 6):
        dense = normal(seed, A, B)
        outer = np.outer(dense[:, 0], dense[0])
        one = np.zeros_like(dense)
        one[seed % A, 7] = -2.0
        steep = with_spectrum(seed + 1, A, B, np.logspace(0, -12, A))
        grads = np.stack([dense, outer, one, steep, np.full_like(dense, 0.3), dense])
        for p in found(grads, rank=rank):
            np.testing.assert_allclose(p.T @ p, np.eye(rank), atol=2e-6)


def test_captures_what_an_svd_does_and_more_with_every_refresh():
    grad = with_spectrum(3, A, B, np.arange(1, A + 1) ** -0.7)
    shares = [share(p, grad) for p in found(np.stack([grad] * 6))]
    assert shares[0] > 0.97
    assert (np.diff(shares) > -1e-6).all()
    assert shares[-1] > 0.995


def test_moves_continuously():
    """Where the gradient has hardly changed the basis has not either, in any direction."""
    grad = with_spectrum(4, A, B, np.arange(1, A + 1) ** -1.0)
    *_, before, after = found(np.stack([*[grad] * 30, grad + 1e-4 * normal(5, A, B)]))
    assert np.abs(before - after).max() < 0.02


def test_no_factorization_and_one_compiled_step():
    basis = Oja()
    shape = jax.ShapeDtypeStruct((A, B), jnp.float32)
    stored = jax.ShapeDtypeStruct((A, RANK), jnp.float32)
    jaxprs = [
        jax.make_jaxpr(lambda g, p, b=b: b.find(g, p, RANK, jax.random.key(0)))(shape, stored)
        for b in (basis, Oja(rounds=7, first=20))
    ]
    few, many = (list(primitives(x.jaxpr)) for x in jaxprs)
    assert few.count("dot_general") == many.count("dot_general") == 9
    assert not FACTORIZATIONS & set(few)
    assert FACTORIZATIONS & set(  # the check is not blind
        primitives(
            jax.make_jaxpr(
                lambda g, p: fira_jax.basis.Randomized().find(g, p, RANK, jax.random.key(0))
            )(shape, stored).jaxpr
        )
    )


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"step": 0.0}, ValueError, "step must be positive, got 0.0"),
        ({"rounds": 0}, ValueError, "rounds must be at least 1, got 0"),
        ({"first": 1.5}, TypeError, "first must be an int, got 1.5"),
    ],
)
def test_errors(options, error, match):
    with pytest.raises(error, match=match):
        Oja(**options)


def test_by_name_in_a_method():
    tx = fira_jax.fira(0.1, 4, 2, basis="oja", moments="carry")
    params = {"w": jnp.asarray(normal(0, 8, 16))}
    state = tx.init(params)
    for seed in range(5):
        updates, state = tx.update({"w": jnp.asarray(normal(seed, 8, 16))}, state, params)
    assert jnp.isfinite(updates["w"]).all()
    p = state[0].bases["w"]
    np.testing.assert_allclose(p.T @ p, np.eye(4), atol=1e-5)


def test_its_cost_is_what_was_aimed_for():
    """Of the figures in the documentation, which scripts wrote."""

    def rows(name, table="rows"):
        return json.loads((RESULTS / f"{name}.json").read_text())[table]

    seconds = {
        row["optimizer"]: row["compile_cpu_s"]
        for row in rows("tpu_refresh", "updates")
        if row["weights"].startswith("llama_1b")
    }
    assert seconds["oja"] <= 5 * seconds["adamw"]
    steps = {
        row["matrix"]: row["refresh_over_step"]
        for row in rows("refresh_over_step")
        if row["basis"] == "oja"
    }
    assert steps["512 x 1376"] <= 2
    assert steps["4096 x 4096"] <= 1.5
    energy = [row["over_svd_percent"] for row in rows("captured_energy") if row["basis"] == "oja"]
    assert np.mean(energy) >= 99

"""Orthogonalized Fira against NumPy in float64: the reference of Fira, then Muon's iteration."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import Reference
from support import history, normal

import fira_jax
from fira_jax.transforms import orthogonal

STEPS, RATE, RMS, RANK, GAP = 7, 0.1, 0.3, 3, 3


def muons(x, rounds):
    """Muon's iteration on the shorter side."""
    if x.shape[0] > x.shape[1]:
        return muons(x.T, rounds).T
    x = x / np.linalg.norm(x)
    for _ in range(rounds):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    return x


@pytest.mark.parametrize("shape", [(8, 12), (12, 8), (8, 8)])
@pytest.mark.parametrize("rounds", [5, 2])
def test_updates_are_those_of_fira_then_orthogonalized(shape, rounds):
    fira = Reference(RANK, GAP, 0.25, gamma=None, carry=True)
    weight = normal(1, *shape, dtype=np.float64)
    grads = normal(0, STEPS, *shape, dtype=np.float64)
    with jax.enable_x64(True):
        tx = fira_jax.fira_orthogonal(
            RATE, RANK, GAP, weight_decay=0.1, consistent_rms=RMS, ns_steps=rounds, basis="svd"
        )
        updates, _ = history(tx, {"w": grads}, {"w": weight})
    size = RMS * max(shape) ** 0.5
    for ours, grad in zip(updates["w"], grads, strict=True):
        direction = -fira.step(np.zeros(shape), grad)
        theirs = -RATE * (size * muons(direction, rounds) + 0.1 * weight)
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9)


def test_all_directions_have_one_size_whatever_the_gradients():
    """Singular values of the update, where those of the gradients span five orders."""
    left, right = (np.linalg.qr(normal(i, 16, 16))[0] for i in (0, 1))
    grad = jnp.asarray(left * np.logspace(0, -5, 16) @ right)
    updates = {
        name: history(getattr(fira_jax, name)(1.0, 4), {"w": grad[None]}, {"w": grad})[0]["w"][0]
        for name in ("fira_tracked", "fira_orthogonal")
    }
    spread = {name: np.linalg.svd(x)[1] for name, x in updates.items()}
    assert np.median(spread["fira_tracked"]) < 0.1 * spread["fira_tracked"][0]
    assert np.median(spread["fira_orthogonal"]) > 0.5 * spread["fira_orthogonal"][0]
    assert spread["fira_orthogonal"][0] < 1.3 * 0.05 * 16**0.5


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (6, 6)])
def test_state_is_firas_without_the_limiters_number(shape):
    params = {"w": jax.ShapeDtypeStruct((2, *shape), jnp.float32)}
    every = fira_jax.match_paths(include="w")
    tx = fira_jax.fira_orthogonal(RATE, 2, weight_dimension_numbers=every)
    (row,) = fira_jax.describe(tx, params).rows
    assert row.state_bytes == 4 * 2 * (min(shape) * 2 + 2 * max(shape) * 2)


def test_every_update_may_be_normalized_before_it_leaves():
    """What `project_back` is given sees each matrix in float32 and in the weight's orientation."""
    stacked = {"w": (2, (0, 1)), "b": None}
    low_rank = fira_jax.LowRank(2, basis="svd", weight_dimension_numbers=stacked)
    params = {"w": jnp.ones((2, 4, 5), jnp.bfloat16), "b": jnp.ones(3)}
    seen = []

    def signs(x):
        seen.append((x.shape, x.dtype))
        return jnp.sign(x)

    tx = optax.chain(fira_jax.low_rank_project(low_rank), fira_jax.project_back(signs))
    updates, _ = tx.update(params, tx.init(params))
    assert seen == [((5, 8), jnp.float32)]
    assert updates["w"].dtype == jnp.bfloat16
    assert (updates["w"] == 1).all()
    assert (updates["b"] == params["b"]).all()


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (2, 5, 5)])
def test_the_iteration_comes_near_the_orthogonal_factor(shape):
    x = normal(3, *shape)
    u, _, vt = np.linalg.svd(x, full_matrices=False)
    exact = max(shape[-2:]) ** 0.5 * u @ vt
    off = np.linalg.norm(orthogonal(8)(x) - exact, axis=(-2, -1))
    assert (off < 0.35 * np.linalg.norm(exact, axis=(-2, -1))).all()
    assert not orthogonal()(jnp.zeros(shape)).any()


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="ns_steps must be at least 1, got 0"):
        fira_jax.fira_orthogonal(RATE, ns_steps=0)
    with pytest.raises(TypeError, match=r"ns_steps must be an int, got 2\.5"):
        orthogonal(2.5)
    with pytest.raises(TypeError, match="consistent_rms must be a number, got None"):
        fira_jax.fira_orthogonal(RATE, consistent_rms=None)
    with pytest.raises(TypeError, match="scale must be a number, got None"):
        fira_jax.fira_orthogonal(RATE, scale=None)

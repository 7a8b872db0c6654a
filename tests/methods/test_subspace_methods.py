"""Lotus, AdaRankGrad, LDAdam, SubTrack++ and GaLore 2 beside their formulas in NumPy float64."""

from __future__ import annotations

import functools
import inspect
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_subspaces as reference
from optax.contrib import MuonDimensionNumbers
from support import normal, run, with_spectrum

import fira_jax
from fira_jax.basis import Adaptive, Grassmann, PowerIteration, Randomized, Svd
from fira_jax.refresh import Displacement, NormDecay

EVERY_MATRIX = {"weight_dimension_numbers": MuonDimensionNumbers(-2, -1)}
STEPS = 14


def gradients(size: float = 1.0) -> np.ndarray:
    """Matrices ``[steps, a, b]`` that turn slowly, shrink and grow again."""
    rng = np.random.default_rng(0)
    fixed = rng.standard_normal((6, 9))
    spectrum = with_spectrum(1, 6, 9, np.array([5, 3, 0.5, 0.2, 0.1, 0.05]))
    shrink = np.array([1, 0.8, 0.6, 0.4, 0.3, 0.2, 2, 1.5, 1, 0.5, 0.4, 0.2, 1, 1])
    return np.stack(
        [
            size * s * (fixed * t / 5 + 2 * spectrum + 0.3 * rng.standard_normal((6, 9)))
            for t, s in enumerate(shrink)
        ]
    )


def compare(tx, expected, grads, rtol=1e-6):
    """The wide matrix, the tall one and a stack of both orders get the expected updates."""
    with jax.enable_x64(True):
        tree = {
            "wide": grads,
            "tall": grads.swapaxes(1, 2),
            "stack": np.stack([grads, grads], axis=1),
            "vector": np.ones((STEPS, 3)),
        }
        updates, state = run(tx, tree)
        scale = np.abs(expected).max()
        for got in (
            updates["wide"],
            updates["tall"].swapaxes(1, 2),
            updates["stack"][:, 0],
            updates["stack"][:, 1],
        ):
            np.testing.assert_allclose(got, -expected, rtol=rtol, atol=rtol * scale)
    return state


def test_lotus():
    gap, gamma = 2, 0.11
    tx = fira_jax.lotus(1.0, 3, gap, 0.25, refresh=Displacement(gamma), basis="svd", **EVERY_MATRIX)
    grads = gradients()
    expected = reference.lotus(grads, 3, gap, 0.25, gamma)
    compare(tx, expected, grads)
    fixed = reference.lotus(grads, 3, gap, 0.25, gamma=0.0)
    assert np.abs(fixed - expected).max() > 0.01  # it does switch


def test_adarankgrad():
    """The masked ranks of one compiled program equal ranks that change the shapes."""
    energy = 0.9
    tx = fira_jax.adarankgrad(
        1.0,
        4,
        5,
        0.5,
        basis=Adaptive(energy, of=Svd()),
        refresh=NormDecay(0.5, 0.5),
        **EVERY_MATRIX,
    )
    grads = gradients()
    expected, ranks = reference.adarankgrad(grads, 4, 5, 0.5, energy, 0.5, 0.5)
    state = compare(tx, expected, grads)
    assert len(set(ranks)) > 1
    assert np.asarray(state[0].bases["wide"]).any(axis=0).sum() == ranks[-1]


@pytest.mark.parametrize("feedback", [True, False])
def test_ldadam(feedback):
    tx = fira_jax.ldadam(
        1.0, 3, error_feedback=feedback, basis=PowerIteration(start=Svd()), **EVERY_MATRIX
    )
    grads = gradients()
    compare(tx, reference.ldadam(grads, 3, 1.0, 0.908, feedback=feedback), grads)


def test_subtrack():
    grads, step = gradients(0.2), 0.5
    tx = fira_jax.subtrack(1.0, 3, 3, 0.25, basis=Grassmann(step, start=Svd()), **EVERY_MATRIX)
    expected = reference.subtrack(grads, 3, 3, 0.25, step)
    compare(tx, expected, grads)
    still = reference.subtrack(grads, 3, 3, 0.25, 0.0)
    assert np.abs(still - expected).max() > 1e-3  # the basis does move


def test_galore2_is_galore_with_another_sketch():
    given = {name: object() for name in inspect.signature(fira_jax.galore).parameters}
    numbers = ("learning_rate", "scale", "weight_decay", "b1", "b2", "eps")
    given |= {name: i / 8 for i, name in enumerate(numbers, 1)}  # checked before they are passed on
    with mock.patch("fira_jax.methods.galore2.galore", autospec=True) as galore:
        made = fira_jax.galore2(**given)
        fira_jax.galore2(0.1)
    signature = inspect.signature(fira_jax.galore)
    first, default = (signature.bind(*c.args, **c.kwargs).arguments for c in galore.mock_calls)
    assert made.init is galore.return_value.init
    assert first == given
    assert default["basis"] == Randomized(8, 1)


def test_tracked_fira_is_fira_in_a_subspace_that_follows():
    own = inspect.signature(fira_jax.fira_tracked).parameters
    given = {name: object() for name in own}
    numbers = ("learning_rate", "scale", "weight_decay", "b1", "b2", "eps")
    given |= {name: i / 9 for i, name in enumerate(numbers, 1)}  # checked before they are passed on
    given["gamma"] = 1.5
    with mock.patch("fira_jax.methods.fira_tracked.fira", autospec=True) as fira:
        made = fira_jax.fira_tracked(**given)
        fira_jax.fira_tracked(0.1)
    signature = inspect.signature(fira_jax.fira)
    first, default = (signature.bind(*c.args, **c.kwargs).arguments for c in fira.mock_calls)
    assert made.init is fira.return_value.init
    assert first == given
    released = {name: x.default for name, x in signature.parameters.items()}
    changed = {name: x for name, x in default.items() if x != released[name]}
    new = {"update_proj_gap": 10, "basis": PowerIteration(), "moments": "carry"}
    assert changed == {"learning_rate": 0.1, **new}


def test_a_tracked_subspace_takes_the_moments_along():
    """Where the gradient's subspace turns, carried moments are those of the whole gradient's."""
    rng = np.random.default_rng(3)
    left, right = rng.standard_normal((8, 2)), rng.standard_normal((2, 12))
    turned = left @ rng.standard_normal((2, 2)), rng.standard_normal((2, 12))
    grads = jnp.asarray([left @ right] * 3 + [turned[0] @ turned[1]] * 3, jnp.float32)
    low_rank = {"update_proj_gap": 1, **EVERY_MATRIX}
    tx = fira_jax.fira_tracked(1.0, 2, basis=PowerIteration(start=Svd()), **low_rank)
    state = tx.init({"w": grads[0]})
    mean = np.zeros((8, 12))
    for grad in grads:
        _, state = jax.jit(tx.update)({"w": grad}, state, {"w": grads[0]})
        mean = 0.9 * mean + 0.1 * np.asarray(grad)
        np.testing.assert_allclose(
            state[0].bases["w"] @ state[1].mu["w"], mean, atol=1e-4 * np.abs(mean).max()
        )


# --- what feedback is for ----------------------------------------------------------------------


def test_what_momentum_feedback_loses_comes_back():
    """Everything that came in is in the momentum, or waits to be: nothing is lost, nothing twice.

    With M the full-size momentum, (1 - b1) E + P m follows M <- b1 M + (1 - b1) G exactly,
    except that E itself decays with b1 before it is added.
    """
    with jax.enable_x64(True):
        b1 = 0.9
        low_rank = fira_jax.LowRank(2, 1, 1.0, basis=PowerIteration(), moments="carry")
        tx = fira_jax.momentum_feedback(low_rank, b1)
        grads = normal(0, 6, 5, 7, dtype=np.float64)
        state = tx.init(grads[0])
        update = jax.jit(tx.update)
        whole = np.zeros((5, 7))
        for grad in grads:
            fed = np.asarray(state.error)
            whole = b1 * whole + (1 - b1) * (grad + fed)
            _, state = update(jnp.asarray(grad), state)
            lifted = state.project.bases @ state.adam.mu
            np.testing.assert_allclose((1 - b1) * state.error + lifted, whole, atol=1e-12)
            np.testing.assert_allclose(state.project.bases.T @ state.error, 0, atol=1e-12)
            whole = lifted


def test_ldadam_reaches_what_its_subspace_does_not_hold():
    """Feedback is what makes a rank of 1 converge in all directions."""
    target = jnp.asarray(normal(0, 4, 6))

    def distance(feedback):
        tx = fira_jax.ldadam(0.03, 1, error_feedback=feedback)

        def step(carry, _):
            x, state = carry
            updates, state = tx.update(x - target, state, x)
            return (optax.apply_updates(x, updates), state), None

        start = jnp.zeros_like(target)
        (x, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, None, 400))((start, tx.init(start)))
        return float(jnp.linalg.norm(x - target))

    assert distance(True) < 0.2 * float(jnp.linalg.norm(target))


# --- bases -------------------------------------------------------------------------------------


@functools.cache
def move(basis):
    return jax.jit(basis.move)


def some_basis(rank):
    return np.linalg.qr(normal(1, 6, rank))[0]


@pytest.mark.parametrize("basis", [PowerIteration(), Grassmann(0.1)])
@pytest.mark.parametrize("rank", [2, 6])
def test_moved_bases_are_orthonormal_whatever_the_gradient(basis, rank):
    """Of low rank, as large or small as float32 has, or such that nothing is left to learn."""
    start = some_basis(rank)
    low = np.outer(normal(1, 6), normal(2, 9))
    inside = np.pad(start @ start.T, ((0, 0), (0, 3)))
    for grad in (normal(3, 6, 9), low, np.eye(6, 9), 1e-18 * low, 1e18 * low, inside):
        unit = 1 if isinstance(basis, Grassmann) else np.abs(grad).max()
        vectors = np.asarray(move(basis)((grad / unit).astype(np.float32), start))
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(rank), atol=1e-5)


def test_a_tracked_basis_starts_with_another_kind():
    basis, grad = PowerIteration(start=Svd()), jnp.asarray(normal(0, 6, 9))
    nothing, key = basis.init(6, 2, jnp.float32), jax.random.key(0)
    assert not nothing.any()
    first = basis.find(grad, nothing, 2, key)
    np.testing.assert_allclose(first, Svd().find(grad, nothing, 2, key), atol=1e-6)
    second = basis.find(grad, first, 2, key)
    np.testing.assert_allclose(second, basis.move(grad, first), atol=1e-6)


def test_power_iteration_converges_to_the_leading_vectors():
    grad, vectors = with_spectrum(0, 6, 9, np.array([5, 4, 1, 0.5, 0.1])), some_basis(2)
    for _ in range(12):
        vectors = move(PowerIteration())(grad, vectors)
    best = np.linalg.svd(grad)[0][:, :2]
    np.testing.assert_allclose(np.linalg.svd(best.T @ vectors)[1], 1, atol=1e-5)


def test_power_iteration_keeps_the_directions_that_a_gradient_lacks():
    start = some_basis(2)
    vectors = move(PowerIteration())(np.outer(start[:, 0], normal(2, 9)), start)
    np.testing.assert_allclose(np.abs(np.sum(vectors * start, axis=0)), 1, atol=1e-3)
    np.testing.assert_allclose(vectors[:, 1], start[:, 1], atol=1e-3)


def test_a_small_geodesic_step_lowers_the_error():
    grad, start = normal(0, 6, 9), some_basis(2)
    moved = np.asarray(move(Grassmann(1e-3))(grad, start))

    def error(vectors):
        return np.sum(np.square(grad - vectors @ (vectors.T @ grad)))

    # by the square of the gradient of the error, to first order
    inside = start.T @ grad
    sigma = np.linalg.svd(-2 * (grad - start @ inside) @ inside.T)[1][0]
    assert error(start) - error(moved) == pytest.approx(1e-3 * sigma**2, rel=0.1)
    assert sigma > 1


@pytest.mark.parametrize("smallest", [1, 4])
def test_adaptive_takes_the_fewest_vectors_that_suffice(smallest):
    sizes = np.array([4, 2, 1, 0.5, 0.25, 0.125])
    grad = jnp.asarray(with_spectrum(0, 6, 9, sizes))
    share = np.cumsum(sizes**2) / np.sum(sizes**2)
    for energy in (0.5, 0.75, 0.9, 0.95, 0.999, 1.0):
        basis = Adaptive(energy, smallest, Svd())
        vectors = basis.find(grad, basis.init(6, 5, jnp.float32), 5, jax.random.key(0))
        expected = np.clip(np.sum(share[:5] < energy - 1e-6) + 1, smallest, 5)
        assert np.asarray(vectors).any(axis=0).tolist() == [True] * expected + [False] * (
            5 - expected
        )


# --- rank by parameter, and resizing -----------------------------------------------------------


def test_a_resized_state_goes_on_as_if_nothing_had_happened():
    """The memory shrinks, the steps do not change: until the next refresh, which is at one."""
    options = {"basis": Adaptive(0.9, of=Svd()), "refresh": "fixed", **EVERY_MATRIX}
    spectra = ([3, 2.9, 2.8], [5, 1, 0.1])  # of which a stack needs the larger rank
    in_a_stack = [with_spectrum(i, 6, 9, np.array(x)) for i, x in enumerate(spectra)]
    grads = {
        "a": np.stack([with_spectrum(0, 6, 9, np.array([5, 1, 0.1]))] * 2),
        "stack": np.stack([np.stack(in_a_stack)] * 2),
        "vector": normal(0, 2, 4),
    }
    at = [jax.tree.map(lambda g, t=t: jnp.asarray(g[t]), grads) for t in range(2)]
    large = fira_jax.adarankgrad(1e-2, 4, 100, **options)
    update = jax.jit(large.update)
    _, state = update(at[0], large.init(at[0]), at[0])
    ranks = fira_jax.active_ranks(large, state, at[0])
    assert ranks == {"a": 1, "stack": 3}
    small = fira_jax.adarankgrad(1e-2, ranks, 100, **options)
    resized = fira_jax.resize_state(small, state, at[0])
    assert resized[0].bases["a"].shape == (6, 1)
    assert resized[1].nu["stack"].shape == (2, 3, 9)
    assert jax.tree.map(jnp.shape, resized) == jax.tree.map(jnp.shape, small.init(at[0]))
    expected, after = update(at[1], state, at[0])
    got, _ = jax.jit(small.update)(at[1], resized, at[0])
    for name in grads:
        np.testing.assert_allclose(got[name], expected[name], atol=1e-7)
    again = fira_jax.resize_state(large, resized, at[0])
    for x, y in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(x, y)
    sizes = [sum(x.nbytes for x in jax.tree.leaves(s)) for s in (resized, after)]
    assert sizes[0] < 0.7 * sizes[1]


def test_ranks_by_path():
    params = {"block": {"q": jnp.ones((6, 9)), "k": jnp.ones((6, 9))}, "b": jnp.ones(9)}
    tx = fira_jax.LowRank({"block/q": 2, "block/k": 0.5})
    assert [leaf.view.rank if leaf.view else None for leaf in tx.leaves(params)] == [None, 3, 2]
    with pytest.raises(ValueError, match=r"rank has no entry for parameter 'block/k' .* block/q"):
        fira_jax.LowRank({"block/q": 2}).leaves(params)
    with pytest.raises(ValueError, match=r"rank of 'q' must be at least 1, got 0"):
        fira_jax.LowRank({"q": 0})


# --- state and errors --------------------------------------------------------------------------

STATE = {  # elements for a matrix of sides a <= b at rank r
    "galore2": lambda a, b, r: a * r + 2 * b * r,
    "lotus": lambda a, b, r: a * r + 3 * b * r + 1,
    "adarankgrad": lambda a, b, r: a * r + 2 * b * r + 3,
    "ldadam": lambda a, b, r: a * r + 2 * b * r + a * b,
    "subtrack": lambda a, b, r: a * r + 2 * b * r + 1,
    "fira_tracked": lambda a, b, r: a * r + 2 * b * r + 1,
}

BASES = {  # that compile fast
    "adarankgrad": Adaptive(of=Svd()),
    "ldadam": PowerIteration(start=Svd()),
    "subtrack": Grassmann(start=Svd()),
    "fira_tracked": PowerIteration(start=Svd()),
}


@pytest.mark.parametrize("method", STATE)
@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (6, 6)])
def test_state_has_as_many_elements_as_published(method, shape):
    tx = getattr(fira_jax, method)(1e-2, 2, **EVERY_MATRIX)
    params = {"w": jax.ShapeDtypeStruct((3, *shape), jnp.float32)}
    row = fira_jax.describe(tx, params).rows[0]
    assert row.state_bytes == 4 * 3 * STATE[method](min(shape), max(shape), 2)


@pytest.mark.parametrize("method", BASES)
def test_unusable_gradients_poison_nothing(method):
    tx = getattr(fira_jax, method)(1e-2, 2, 2, basis=BASES[method], **EVERY_MATRIX)
    grads = normal(0, 8, 5, 7)
    grads[0], grads[3], grads[4] = np.nan, 0, np.inf
    params = jnp.zeros((5, 7))
    updates, state = run(tx, jnp.asarray(grads), params)
    assert np.isfinite(updates).all()
    assert not updates[0].any()
    for x in jax.tree.leaves(state):
        assert np.isfinite(x).all()


def test_errors_name_the_argument():
    for method in (fira_jax.subtrack, fira_jax.ldadam):
        with pytest.raises(ValueError, match="base_optimizer must be None"):
            method(1e-2, base_optimizer=optax.scale_by_lion())
    fira_jax.adarankgrad(1e-2, base_optimizer=optax.scale_by_lion())  # whose state can turn
    fira_jax.adarankgrad(1e-2, base_optimizer=optax.scale_by_lion(), moments="keep")
    with pytest.raises(ValueError, match=r"momentum_feedback needs LowRank\(moments='carry'\)"):
        fira_jax.momentum_feedback(fira_jax.LowRank())
    with pytest.raises(ValueError, match="carry must be one of"):
        fira_jax.scale_by_adam_in_subspace(fira_jax.LowRank(), carry="all")
    for wrong in (
        lambda: Grassmann(step=0.0),
        lambda: Adaptive(energy=0.0),
        lambda: Adaptive(energy=1.1),
        lambda: Adaptive(smallest=0),
        lambda: Adaptive(of=fira_jax.basis.Dct()),
        lambda: PowerIteration(start=fira_jax.basis.Random()),
    ):
        with pytest.raises(ValueError, match="must be"):
            wrong()
    tx, params = fira_jax.galore(1e-2, 2), {"w": jnp.ones((4, 6))}
    with pytest.raises(ValueError, match="of the same transformation but for its ranks"):
        fira_jax.resize_state(fira_jax.fira(1e-2, 2), tx.init(params), params)
    with pytest.raises(ValueError, match=r"has shape \(4, 2\), which does not become \(5, 2\)"):
        fira_jax.resize_state(tx, tx.init(params), {"w": jnp.ones((5, 7))})


def test_the_share_of_energy_is_of_the_whole_gradient():
    """The first vector holds 9 of the 13 that two can find (0.69), but of all 15 only 0.6."""
    grad = jnp.diag(jnp.array([3.0, 2.0, 1.0, 1.0])) @ jnp.eye(4, 8)
    for energy, active in ((0.55, [True, False]), (0.65, [True, True])):
        basis = Adaptive(energy, of=Svd())
        found = basis.find(grad, basis.init(4, 2, "float32"), 2, jax.random.key(0))
        assert found.any(axis=0).tolist() == active

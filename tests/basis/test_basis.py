"""What every basis must be after every refresh, and how near the best one the default comes."""

from __future__ import annotations

import dataclasses
import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from optax.contrib import MuonDimensionNumbers
from scipy.fft import dct
from support import examples, normal, with_spectrum

import fira_jax
from fira_jax.random_bits import word

A, B, RANK = 12, 20, 5
SEEDS = st.integers(0, 2**31 - 1)


def hostile_matrices(seed: int) -> dict[str, np.ndarray]:
    """Gradients that a factorization may stumble over, each ``[A, B]``."""
    dense = normal(seed, A, B)
    duplicated = dense.copy()
    duplicated[1::2] = duplicated[::2]
    sparse = np.zeros_like(dense)
    sparse[3, 7] = -2.0
    return {
        "dense": dense,
        "rank 1": np.outer(dense[:, 0], dense[0]),
        "zero": np.zeros_like(dense),
        "constant": np.full_like(dense, -0.3),
        "condition 1e12": with_spectrum(seed, A, B, np.logspace(0, -12, A)),
        "tiny": dense * np.float32(1e-30),
        "subnormal": dense * np.float32(1e-40),
        "huge": dense * np.float32(1e30),
        "one entry": sparse,
        "equal rows": duplicated,
        "equal singular values": with_spectrum(seed, A, B, np.ones(A)),
        "one large entry": sparse * np.float32(1e15) + dense,
    }


@functools.cache
def refreshed_bases(basis: str, side: str):
    """A jitted function: gradients of two steps -> both bases of a stack of matrices."""
    low_rank = fira_jax.LowRank(
        RANK, 1, basis=basis, side=side, weight_dimension_numbers=MuonDimensionNumbers(-2, -1)
    )
    project = fira_jax.low_rank_project(low_rank)

    @jax.jit
    def refresh(first, second):
        node, state = project.update(first, project.init(first))
        return node.basis, project.update(second, state)[0].basis

    return refresh


@pytest.mark.parametrize("basis", ["svd", "randomized", "dct"])
@pytest.mark.parametrize("side", ["short", "long"])
@examples(max_examples=8)
@given(seed=SEEDS, shift=st.integers(0, 10))
def test_orthonormal_with_canonical_signs_after_every_refresh(basis, side, seed, shift):
    matrices = hostile_matrices(seed)
    first = np.stack(list(matrices.values()))
    found = refreshed_bases(basis, side)(first, np.roll(first, shift, axis=0))
    names = np.array(list(matrices))
    for step, labels in zip(found, (names, np.roll(names, shift)), strict=True):
        for name, p in zip(labels, np.asarray(step), strict=True):
            np.testing.assert_allclose(p.T @ p, np.eye(RANK), atol=1e-5, err_msg=name)
            if basis != "dct":  # whose vectors are fixed, signs included
                largest = np.abs(p).argmax(axis=0)
                assert (p[largest, np.arange(RANK)] > 0).all(), name


@pytest.mark.parametrize("basis", ["svd", "randomized"])
def test_basis_leads_the_gradient_of_low_rank(basis):
    """A gradient of rank 1 lies in the basis, however small, large or ill-conditioned it is."""
    matrices = hostile_matrices(0)
    first = np.stack(list(matrices.values()))
    p = np.asarray(refreshed_bases(basis, "short")(first, first)[0])
    for name, of in zip(matrices, p, strict=True):
        if name in ("rank 1", "constant", "one entry"):
            grad = matrices[name]
            left = of.T @ grad
            np.testing.assert_allclose(of @ left, grad, atol=1e-4 * np.abs(grad).max())
            share = np.linalg.norm(left[0]) / np.linalg.norm(grad)  # the first vector has it all
            assert share > 0.9999, name


def test_zero_gradient_keeps_the_old_basis():
    dense = normal(0, 2, A, B)
    for basis in ("svd", "randomized", "dct"):
        first, second = refreshed_bases(basis, "short")(dense, np.zeros_like(dense))
        np.testing.assert_array_equal(first, second)


def test_zero_gradient_at_first_leaves_coordinate_directions():
    zero = np.zeros((1, A, B), np.float32)
    for basis in ("svd", "randomized"):
        first, _ = refreshed_bases(basis, "short")(zero, zero)
        np.testing.assert_array_equal(first[0], np.eye(A, RANK))


def test_canonical_signs_make_the_first_largest_entry_positive():
    signs = fira_jax.basis.protocol.canonical_signs
    x = jnp.array([[-1.0, 0.5, 0.0], [1.0, -2.0, 0.0]])
    np.testing.assert_array_equal(signs(x), [[1.0, -0.5, 0.0], [-1.0, 2.0, 0.0]])
    assert (signs(normal(0, 4, 3, 7)) == signs(-normal(0, 4, 3, 7))).all()


@pytest.mark.parametrize("a", [1, 5, 12, 40_000])
def test_cosine_vectors_are_the_orthonormal_dct(a):
    indices = np.array([0, 1, a // 2, a - 1])[: max(1, min(a, 4))] % a
    ours = fira_jax.basis.dct.cosine_vectors(jnp.asarray(indices), a, jnp.float32)
    basis_function = np.zeros((a, len(indices)))
    basis_function[indices, np.arange(len(indices))] = 1
    theirs = dct(basis_function, type=3, axis=0, norm="ortho")
    np.testing.assert_allclose(ours, theirs, atol=2e-6 * np.sqrt(2 / a))


def test_dct_chooses_the_columns_with_most_energy():
    grad = normal(0, A, B)
    chosen = fira_jax.basis.Dct().find(jnp.asarray(grad), jnp.arange(4), 4, jax.random.key(0))
    energy = (dct(grad, type=2, axis=0, norm="ortho") ** 2).sum(axis=1)
    assert chosen.tolist() == sorted(np.argsort(-energy)[:4])


# --- the default ------------------------------------------------------------------------------

SPECTRA = {  # of layers in training: a few strong directions and a long tail
    "power 0.5": np.arange(1, 49) ** -0.5,
    "power 1": np.arange(1, 49) ** -1.0,
    "power 2": np.arange(1, 49) ** -2.0,
    "exponential": np.exp(-np.arange(48) / 10),
    "plateau": np.concatenate([np.ones(16), np.full(32, 0.1)]),
    "cliff": np.concatenate([np.ones(8), np.full(40, 1e-6)]),
}


@functools.cache
def finder(basis: fira_jax.basis.Basis, rank: int):
    """A jitted function: gradient and seed -> basis."""

    def find(grad, seed):
        stored = jnp.zeros((grad.shape[0], rank))
        return basis.find(grad / jnp.max(jnp.abs(grad)), stored, rank, jax.random.key(seed))

    return jax.jit(find)


DEFAULT = fira_jax.basis.Randomized()


def captured(grad: np.ndarray, basis: np.ndarray) -> float:
    """Energy of the gradient inside a basis, relative to the best basis of that rank."""
    best = np.linalg.svd(grad, compute_uv=False)[: basis.shape[1]]
    return float(np.sum((np.asarray(basis).T @ grad) ** 2) / np.sum(best**2))


@examples(max_examples=12)
@given(seed=SEEDS, spectrum=st.sampled_from(sorted(SPECTRA)))
def test_randomized_captures_what_the_exact_basis_captures(seed, spectrum):
    grad = with_spectrum(seed, 48, 80, SPECTRA[spectrum])
    assert captured(grad, finder(DEFAULT, 16)(grad, seed)) >= 0.995


def test_oversampling_and_power_iterations_earn_their_keep():
    """Where the spectrum decays slowly, less of either loses energy."""
    grad = with_spectrum(0, 48, 80, SPECTRA["power 0.5"])
    default = captured(grad, finder(DEFAULT, 16)(grad, 0))
    for name in ("oversample", "power_iterations"):
        less = dataclasses.replace(DEFAULT, **{name: 0})
        assert captured(grad, finder(less, 16)(grad, 0)) < default - 0.002


def test_without_extra_columns_there_is_no_eigenproblem_and_strong_directions_come_first():
    basis = fira_jax.basis.Randomized(oversample=0)
    grad = with_spectrum(3, 48, 80, SPECTRA["power 1"])
    vectors = finder(basis, 16)(grad, 0)
    assert captured(grad, vectors) > 0.98
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(16), atol=1e-5)
    strength = np.sum(np.square(vectors.T @ grad), axis=1)
    assert strength[0] > 10 * strength[8] > 0
    for one, eigenproblem in ((basis, False), (DEFAULT, True)):
        jaxpr = jax.make_jaxpr(finder(one, 16))(grad, 0)
        assert ("eigh" in str(jaxpr)) == eigenproblem


def test_randomized_is_deterministic_under_its_seed():
    grad = with_spectrum(0, 48, 80, SPECTRA["power 0.5"])
    find = finder(DEFAULT, 16)
    np.testing.assert_array_equal(find(grad, 1), find(grad, 1))
    assert np.abs(find(grad, 1) - find(grad, 2)).max() > 1e-4


@pytest.mark.parametrize("k", [12, 64])
def test_span_of_any_rank_is_orthonormalized(k):
    """Square spans too, whose missing directions a perturbation can hardly supply."""
    orthonormalize = jax.jit(fira_jax.basis.randomized.orthonormalize)
    spectra = {
        "flat": np.ones(k),
        "rank 1": np.eye(1, k)[0],
        "half": np.arange(k) < k // 2,
        "ill-conditioned": np.logspace(0, -12, k),
        "zero": np.zeros(k),
    }
    for name, values in spectra.items():
        span = with_spectrum(0, k, k, values)
        q = np.asarray(orthonormalize(span, np.array([1, 2], np.uint32)))
        np.testing.assert_allclose(q.T @ q, np.eye(k), atol=2e-6, err_msg=name)


def test_small_constant_gradient_is_found_under_every_seed():
    """Its sketch by random signs would be zero for some, and the basis not a number."""
    find = jax.jit(jax.vmap(finder(DEFAULT, 1), in_axes=(None, 0)))
    for shape in ((1, 2), (2, 2), (4, 2)):
        p = find(np.full(shape, -3.0, np.float32), np.arange(64))
        np.testing.assert_allclose(p, np.full((64, shape[0], 1), shape[0] ** -0.5), rtol=1e-4)


@pytest.mark.parametrize("seed", [0, 1])
def test_random_basis_has_unit_expectation_and_follows_seed_and_refresh(seed):
    def bases(seed):
        project = fira_jax.low_rank_project(fira_jax.LowRank(200, 2, basis="random", seed=seed))
        grad = jnp.ones((200, 300))
        state, found = project.init(grad), []
        for _ in range(3):
            node, state = project.update(grad, state)
            found.append(np.asarray(node.basis))
        return found

    first, second, third = bases(seed)
    np.testing.assert_array_equal(first, second)  # the same until the refresh
    assert not np.allclose(first, third)
    assert not np.allclose(first, bases(seed + 1)[0])
    np.testing.assert_allclose((first @ first.T).diagonal().mean(), 1, atol=0.02)


@pytest.mark.parametrize("moving", [fira_jax.basis.PowerIteration(), fira_jax.basis.Grassmann()])
def test_adaptive_refuses_a_basis_that_moves_on(moving):
    with pytest.raises(ValueError, match="found anew at each refresh"):
        fira_jax.basis.Adaptive(of=moving)


def test_a_basis_with_the_methods_alone_gets_the_defaults():
    @dataclasses.dataclass(frozen=True)
    class First:
        """The first rows."""

        orthonormal = True

        def init(self, a, rank, dtype):
            return jnp.arange(rank)

        def find(self, grad, stored, rank, key):
            return stored

        def vectors(self, stored, a, rank, dtype, key):
            return jax.nn.one_hot(stored, a, axis=-2, dtype=dtype)

    low_rank = fira_jax.LowRank(2, basis=First())
    assert isinstance(low_rank.basis, fira_jax.basis.Basis)
    assert low_rank.basis.turns
    assert low_rank.basis.scale_free
    assert not low_rank.basis.whole
    assert low_rank == fira_jax.LowRank(2, basis=First())  # one program for both
    grads = {"w": jnp.ones((4, 8))}
    project = fira_jax.low_rank_project(low_rank)
    node = project.update(grads, project.init(grads))[0]["w"]
    assert (node.raw == 1).all()
    assert node.word == word("w")
    assert node.refreshed.all()


def test_new_coordinates_bring_their_energy():
    project = fira_jax.low_rank_project(fira_jax.LowRank(2))
    grads = {"w": jnp.ones((4, 8))}
    node = project.update(grads, project.init(grads))[0]["w"]
    doubled = node.replace(raw=2 * node.raw)
    assert jnp.allclose(doubled.raw_energy, 4 * node.raw_energy)

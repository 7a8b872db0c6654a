"""The part of the gradient outside the subspace: where it lies, its norm, how fast it may grow."""

from __future__ import annotations

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from optax.contrib import MuonDimensionNumbers
from support import examples, normal, with_spectrum

import fira_jax
from fira_jax.transforms.residual import residual_norm

SEEDS = st.integers(0, 2**31 - 1)
SHAPES = {"tall": (9, 6), "stack": (2, 6, 9), "row": (1, 8)}
RANK = 3


FREE = 1e30  # a growth factor that never limits


def gradients(seed: int) -> dict[str, np.ndarray]:
    """Of six steps, always, so that one compiled program serves all tests."""
    return {name: normal(seed, 6, *shape) for name, shape in SHAPES.items()}


def walk(form: str, basis: str = "svd", basis_dtype=None, granularity: str = "column"):
    """Jitted: gradients stacked along axis 0, γ -> nodes before ``project_back``, norms, state."""
    return _walk(form, basis, basis_dtype, granularity)


@functools.cache
def _walk(form: str, basis: str, basis_dtype, granularity: str):
    low_rank = fira_jax.LowRank(
        RANK, 2, basis=basis, basis_dtype=basis_dtype,
        weight_dimension_numbers=MuonDimensionNumbers(-2, -1),
    )  # fmt: skip

    @jax.jit
    def nodes(grads, gamma):
        tx = optax.chain(
            fira_jax.low_rank_project(low_rank),
            fira_jax.scale_by_adam_in_subspace(low_rank),
            fira_jax.fira_residual_scale(form, granularity=granularity),
            fira_jax.norm_growth_limit(low_rank, gamma),
        )

        def step(state, grad):
            node, state = tx.update(grad, state)
            norms = jax.tree.map(
                residual_norm, node, is_leaf=lambda x: isinstance(x, fira_jax.Subspace)
            )
            return state, (node, norms, state[3].previous)

        return jax.lax.scan(step, tx.init(jax.tree.map(lambda g: g[0], grads)), grads)[1]

    return nodes


def residual(node: fira_jax.Subspace) -> np.ndarray:
    """s∘(G - κPR) formed at full size in float64, canonical orientation, for stacked steps."""
    node = jax.tree.map(lambda x: np.asarray(x, np.float64), node)
    grad = np.where(node.usable, node.matrix, 0)
    grad = grad if node.view.compress_input else np.swapaxes(grad, -1, -2)
    leak = np.reshape(node.residual_leak, (-1, *(1,) * (grad.ndim - 1)))
    steps, *_, a, r = node.basis.shape  # a random basis has no batch axes
    basis = (
        node.basis.reshape(steps, *(1,) * (grad.ndim - 3), a, r)
        if node.basis.ndim == 3
        else node.basis
    )
    return node.residual_scale * (grad - leak * (basis @ node.raw))


def frobenius(x: np.ndarray) -> np.ndarray:
    return np.linalg.norm(np.asarray(x, np.float64), axis=(-2, -1))


# --- the limiter ------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [1.01, 1.5])
@examples(max_examples=10)
@given(
    seed=SEEDS,
    sizes=st.lists(st.sampled_from([1e-6, 0.1, 1.0, 30.0, 1e5]), min_size=6, max_size=6),
)
def test_residual_never_grows_by_more_than_gamma(gamma, seed, sizes):
    grads = gradients(seed)
    grads = jax.tree.map(lambda g: g * np.float32(sizes).reshape(-1, *(1,) * (g.ndim - 1)), grads)
    nodes, _, previous = walk("released")(grads, gamma)
    unlimited, _, _ = walk("released")(grads, FREE)
    for name in SHAPES:
        norm, free = frobenius(residual(nodes[name])), frobenius(residual(unlimited[name]))
        growth = norm[1:] / (norm[:-1] + 1e-8)
        assert growth.max() <= gamma * (1 + 1e-4), name
        # It holds back no more than that, and remembers what it let through.
        expected = np.minimum(free[1:], gamma * (norm[:-1] + 1e-8))
        np.testing.assert_allclose(norm[1:], expected, rtol=2e-4, err_msg=name)
        np.testing.assert_allclose(norm[0], free[0], rtol=2e-4, err_msg=name)
        np.testing.assert_allclose(previous[name], norm, rtol=2e-4, err_msg=name)


@pytest.mark.parametrize("unusable", [0.0, np.nan, np.inf])
@pytest.mark.parametrize("when", [0, 3])
def test_limiter_survives_a_step_without_a_residual(unusable, when):
    """The released one, once it has seen a norm of zero, lets nothing past for 1,500 steps."""
    grads = gradients(5)
    hurt = jax.tree.map(np.copy, grads)
    for g in hurt.values():
        g[when] = unusable
    nodes, _, previous = walk("released")(hurt, 1.01)
    for name in SHAPES:
        norm, kept = frobenius(residual(nodes[name])), np.asarray(previous[name])
        shape = nodes[name].residual_scale.shape
        assert np.asarray(nodes[name].residual_scale)[when].tolist() == np.zeros(shape[1:]).tolist()
        assert np.isfinite(kept).all()
        after = norm[when + 1]
        if when == 0:  # nothing is known yet: the next one passes whole
            np.testing.assert_array_equal(kept[0], np.zeros_like(kept[0]))
            free = frobenius(residual(walk("released")(hurt, FREE)[0][name]))[1]
            np.testing.assert_allclose(after, free, rtol=2e-4, err_msg=name)
        else:
            np.testing.assert_array_equal(kept[when], kept[when - 1])
            assert (after > 0.1 * norm[when - 1]).all(), name


@pytest.mark.parametrize("unusable", [np.nan, np.inf])
def test_unusable_gradient_moves_its_own_matrix_by_moments_alone(unusable):
    tx = fira_jax.fira(0.1, RANK, 10, weight_dimension_numbers=MuonDimensionNumbers(-2, -1))
    grads = {"stack": normal(0, 2, 6, 9)}
    hurt = {"stack": grads["stack"].copy()}
    hurt["stack"][1, 2, 3] = unusable
    zero = {"stack": np.where(np.arange(2)[:, None, None] == 1, 0, grads["stack"])}
    _, state = tx.update(grads, tx.init(grads), grads)
    updates, _ = tx.update(hurt, state, grads)
    expected, _ = tx.update(zero, state, grads)
    assert np.isfinite(updates["stack"]).all()
    np.testing.assert_allclose(updates["stack"], expected["stack"], rtol=1e-5, atol=1e-7)


def test_limiter_survives_a_norm_that_overflows():
    """A gradient of 1e25 outside the subspace: its coordinates are fine, its energy is not."""
    grads = gradients(5)
    free = walk("released")(grads, FREE)[0]
    for name, g in grads.items():
        basis = np.asarray(free[name].basis)[2].astype(np.float64)
        outside = np.eye(basis.shape[-2]) - basis @ np.swapaxes(basis, -1, -2)
        canonical = free[name].view.compress_input
        spike = outside @ (g[3] if canonical else np.swapaxes(g[3], -1, -2))
        g[3] = 1e25 * (spike if canonical else np.swapaxes(spike, -1, -2))
    nodes, _, previous = walk("released")(grads, 1.01)
    for name in SHAPES:
        assert np.isfinite(residual(nodes[name])).all(), name
        kept = np.asarray(previous[name])
        np.testing.assert_array_equal(kept[3], kept[2])
        assert (kept[4] > 0.1 * kept[2]).all(), name


def test_limiter_forgets_an_infinite_norm():
    """Of a gradient taken whole nothing is subtracted, so its energy may be infinite."""
    low_rank = fira_jax.LowRank(1, 10, basis="svd")
    tx = optax.chain(
        fira_jax.low_rank_project(low_rank),
        fira_jax.scale_by_adam_in_subspace(low_rank),
        fira_jax.replace_by_scaled_gradient(),
        fira_jax.norm_growth_limit(low_rank),
    )
    usual = {"w": jnp.zeros((2, 3)).at[0].set(1.0)}
    outside = {"w": jnp.zeros((2, 3)).at[1].set(1e25)}
    _, before = tx.update(usual, tx.init(usual))
    _, after = tx.update(outside, before)
    assert before[3].previous["w"] > 0
    np.testing.assert_array_equal(after[3].previous["w"], before[3].previous["w"])


@pytest.mark.parametrize("unusable", [np.nan, np.inf, 1e30])
def test_other_parameters_lose_only_the_entries_that_are_unusable(unusable):
    tx = fira_jax.fira(-1.0, 2)
    grad = jnp.array([1.0, unusable, -2.0])
    with pytest.warns(UserWarning, match="none of the 1 parameters is a matrix"):
        state = tx.init(grad)
    updates, state = tx.update(grad, state, grad)
    assert np.isfinite(updates).all()
    np.testing.assert_allclose(updates, [1.0, 0.0, -1.0], atol=1e-4)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


@pytest.mark.parametrize("basis_dtype", [None, jnp.bfloat16])
def test_limiter_forgets_a_gradient_that_left_no_residual(basis_dtype):
    """Of rank ``RANK`` at a refresh: what is left is rounding, not a norm to grow from."""
    grads = gradients(5)
    for g in grads.values():
        k = min(RANK, *g.shape[-2:])
        g[0] = g[0][..., :k] @ g[1][..., :k, :]
    nodes, _, previous = walk("paper", "svd", basis_dtype)(grads, 1.01)
    for name in SHAPES:
        assert (np.asarray(previous[name])[0] == 0).all(), name
        if name != "row":  # whose subspace is everything
            assert (frobenius(residual(nodes[name]))[1] > 0.1).all(), name


# --- where the residual lies ------------------------------------------------------------------


@pytest.mark.parametrize("basis", ["svd", "randomized"])
@examples(max_examples=5)
@given(seed=SEEDS)
def test_residual_is_orthogonal_to_the_subspace(basis, seed):
    """κ = 1 removes the subspace part exactly, and column scales cannot bring it back."""
    grads = gradients(seed)
    nodes, _, _ = walk("paper", basis)(grads, 1.01)
    for name, node in nodes.items():
        inside = np.swapaxes(node.basis, -1, -2) @ residual(node)
        whole = frobenius(node.residual_scale * np.ones((node.view.compressed_size, 1)))
        assert (frobenius(inside) <= 1e-5 * whole * np.abs(node.matrix).max()).all(), name


@pytest.mark.parametrize("granularity", ["column", "matrix"])
def test_residual_is_scaled_as_the_core_was(granularity):
    grads = gradients(0)
    nodes, _, _ = walk("released", granularity=granularity)(grads, FREE)
    for name, node in nodes.items():
        axes = -2 if granularity == "column" else (-2, -1)
        core, raw = (np.linalg.norm(x, axis=axes, keepdims=True) for x in (node.core, node.raw))
        expected = np.broadcast_to(core / (raw + 1e-8), node.residual_scale.shape)
        np.testing.assert_allclose(node.residual_scale, expected, rtol=1e-5, err_msg=name)


def test_update_is_the_sum_of_its_parts():
    """U = c (α P N + s∘(G - κ P R)), formed at full size."""
    grads = gradients(1)
    nodes, _, _ = walk("released")(grads, 1.01)
    final = jax.tree.map(lambda x: x[-1], nodes)
    updates, _ = jax.jit(fira_jax.project_back().update)(final, optax.EmptyState())
    for name, node in final.items():
        last = jax.tree.map(lambda x: np.asarray(x, np.float64), node)
        whole = residual(nodes[name])[-1]
        whole = last.step_scale * (last.scale * last.basis @ last.core + whole)
        whole = whole if node.view.compress_input else np.swapaxes(whole, -1, -2)
        np.testing.assert_allclose(updates[name], whole, rtol=1e-4, atol=1e-5, err_msg=name)


# --- its norm ---------------------------------------------------------------------------------


def norm_error(nodes, norms) -> float:
    """Largest gap between the norm from small arrays and the direct one, relative to ‖s∘G‖."""
    worst = 0.0
    for name, node in nodes.items():
        grad = node.matrix if node.view.compress_input else np.swapaxes(node.matrix, -1, -2)
        whole = frobenius(np.asarray(node.residual_scale) * np.asarray(grad, np.float64))
        gap = np.abs(frobenius(residual(node)) - np.asarray(norms[name], np.float64))
        worst = max(worst, float((gap / np.where(whole == 0, 1, whole)).max()))
    return worst


@pytest.mark.parametrize(
    ("form", "basis", "basis_dtype"),
    [
        ("released", "svd", None),
        ("paper", "svd", None),
        ("paper", "randomized", None),
        ("paper", "random", None),
        ("paper", "svd", jnp.bfloat16),
    ],
)
def test_pythagorean_norm_equals_the_direct_norm(form, basis, basis_dtype):
    def worst(*sizes):
        errors = []
        for size in sizes:
            grads = gradients(0)
            for grad in grads.values():
                for index in np.ndindex(grad.shape[:-2]):
                    values = np.full(min(grad.shape[-2:]), size)
                    values[:RANK] = [3.0, 2.0, 1.0][: len(values)]
                    grad[index] = with_spectrum(sum(index), *grad.shape[-2:], values)
            errors.append(norm_error(*walk(form, basis, basis_dtype)(grads, FREE)[:2]))
        return max(errors)

    # Relative to ‖s∘G‖. Ordinary gradients; then the residual shrinks to nothing: its square is
    # known to some units of rounding of ‖s∘G‖², so the norm to their root. Below it counts as 0.
    assert worst(2.0, 0.5) < (1e-3 if basis_dtype else 1e-5)
    assert worst(1e-2, 1e-3, 1e-5, 0.0) < (2e-2 if basis_dtype else 2e-3)

"""What theory says of the whole walk, on random trees, ranks and gradients."""

from __future__ import annotations

import functools

import chex
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from optax.contrib import MuonDimensionNumbers
from support import Identity, examples, normal, run

import fira_jax

BASES = ("svd", "randomized", "dct", "random")
SEEDS = st.integers(0, 2**31 - 1)
EVERY_MATRIX = {"weight_dimension_numbers": MuonDimensionNumbers(-2, -1)}


# --- Adam -------------------------------------------------------------------------------------

B1, B2, EPS = 0.9, 0.99, 1e-3


def adam(grads, *, eps_outside: bool):
    """optax's Adam, its ε as given or, as in the released code, relative to √(1-β₂ᵗ)."""

    def step(state, grad):
        t = state.count + 1.0
        eps = EPS / jnp.sqrt(1 - B2**t) if eps_outside else EPS
        updates, state = optax.scale_by_adam(B1, B2, eps).update(grad, state)
        return state, updates

    state = optax.scale_by_adam().init(jax.tree.map(lambda g: g[0], grads))
    return jax.jit(lambda state: jax.lax.scan(step, state, grads)[1])(state)


@pytest.mark.parametrize("form", ["released", "paper"])
def test_full_rank_identity_basis_is_adam(form):
    """α = 1, no limiter: nothing is left outside the subspace, and inside it is Adam."""
    with jax.enable_x64(True):
        grads = {
            "w": normal(0, 6, 4, 7, dtype=np.float64),
            "square": normal(1, 6, 5, 5, dtype=np.float64),
            "stack": normal(2, 6, 3, 7, 4, dtype=np.float64),
            "b": normal(3, 6, 4, dtype=np.float64),
        }
        tx = fira_jax.fira(
            -1.0, 7, 2, 1.0, b1=B1, b2=B2, eps=EPS, form=form, gamma=None, basis=Identity(),
            **EVERY_MATRIX,
        )  # fmt: skip
        ours, _ = run(tx, grads)
        theirs = adam(grads, eps_outside=form == "released")
        chex.assert_trees_all_close(ours, theirs, rtol=1e-11)


def test_any_full_rank_basis_is_adam_in_rotated_coordinates():
    with jax.enable_x64(True):
        grads = normal(4, 6, 5, 8, dtype=np.float64)
        tx = fira_jax.fira(
            -1.0, 5, 100, 1.0, b1=B1, b2=B2, eps=EPS, form="paper", gamma=None, basis="svd"
        )
        ours, state = run(tx, grads)
        basis = np.asarray(state[0].bases)
        rotated = adam(np.einsum("ar,tab->trb", basis, grads), eps_outside=False)
        np.testing.assert_allclose(ours, np.einsum("ar,trb->tab", basis, rotated), atol=1e-12)


# --- symmetries -------------------------------------------------------------------------------


@functools.cache
def transposed_pair(basis: str, side: str):
    """A jitted run of one tree that holds each problem twice, once transposed."""
    tx = fira_jax.fira(
        0.1, 3, 2, basis=basis, side=side,
        weight_dimension_numbers={
            "w": MuonDimensionNumbers(0, 1),
            "w_transposed": MuonDimensionNumbers(0, 1),
            "square": MuonDimensionNumbers(0, 1),
            "square_transposed": MuonDimensionNumbers(1, 0),  # ties follow the input axis
        },
    )  # fmt: skip
    return jax.jit(lambda grads: run(tx, grads)[0])


@pytest.mark.parametrize("side", ["short", "long"])
@examples(max_examples=10)
@given(seed=SEEDS, size=st.sampled_from([1e-6, 1.0, 1e6]))
def test_transposed_problem_has_transposed_solution(side, seed, size):
    w, square = size * normal(seed, 5, 5, 8), size * normal(seed + 1, 5, 6, 6)
    updates = transposed_pair("svd", side)(
        {
            "w": w,
            "w_transposed": w.swapaxes(1, 2),
            "square": square,
            "square_transposed": square.swapaxes(1, 2),
        }
    )
    for name in ("w", "square"):
        ours, theirs = updates[name], updates[f"{name}_transposed"].swapaxes(1, 2)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", ["short", "long"])
def test_square_matrices_compress_the_input_axis(side):
    low_rank = fira_jax.LowRank(1, 1, basis="svd", side=side)
    project = fira_jax.low_rank_project(low_rank)
    of_input, of_output = jnp.array([0.6, 0.8]), jnp.array([1.0, 0.0])
    grad = jnp.outer(of_input, of_output)
    _, state = project.update(grad, project.init(grad))
    np.testing.assert_allclose(state.bases[:, 0], of_input, rtol=1e-6)


@functools.cache
def forest(basis: str, stacked: bool):
    """A jitted run over three matrices, as leaves of their own or as one stack."""
    tx = fira_jax.fira(0.1, 3, 2, basis=basis, **EVERY_MATRIX)
    del stacked  # of the cache's key only: the trees differ
    return jax.jit(lambda grads: run(tx, grads)[0])


@pytest.mark.parametrize("basis", BASES)
@examples(max_examples=5)
@given(seed=SEEDS, order=st.permutations(range(3)))
def test_order_and_stacking_of_leaves_change_nothing(basis, seed, order):
    matrices = normal(seed, 3, 5, 6, 9)
    matrices *= np.array([1e-4, 1, 1e4]).reshape(3, 1, 1, 1)

    separate = forest(basis, False)({str(i): matrices[i] for i in range(3)})
    permuted = forest(basis, False)({str(i): matrices[j] for i, j in enumerate(order)})
    stacked = forest(basis, True)({"layers": matrices.swapaxes(0, 1)})["layers"]
    for i, j in enumerate(order):
        np.testing.assert_allclose(permuted[str(i)], separate[str(j)], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(stacked[:, i], separate[str(i)], rtol=1e-4, atol=1e-5)


@examples(max_examples=50)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=2, max_size=5),
    data=st.data(),
    side=st.sampled_from(["short", "long"]),
    rank=st.integers(1, 9),
)
def test_matrix_view_loses_nothing(sizes, data, side, rank):
    axes = data.draw(st.permutations(range(len(sizes))))
    cut, end = sorted(data.draw(st.sets(st.integers(1, len(sizes)), min_size=2, max_size=2)))
    spec = MuonDimensionNumbers(tuple(axes[:cut]), tuple(axes[cut:end]))
    view = fira_jax.plan.matrix_view("w", sizes, spec, side, rank)
    x = np.arange(np.prod(sizes)).reshape(sizes)
    matrix = view.to_matrix(x)
    np.testing.assert_array_equal(view.from_matrix(matrix), x)
    m, n = (int(np.prod([sizes[i] for i in part])) for part in (axes[:cut], axes[cut:end]))
    assert matrix.shape == (*(s for i, s in enumerate(sizes) if i not in axes[:end]), m, n)
    shorter, longer = sorted((m, n))
    compressed = (shorter, longer) if side == "short" else (longer, shorter)
    assert (view.compressed_size, view.long_size) == compressed
    assert view.rank == min(rank, shorter)
    assert view.canonical(matrix).shape[-2:] == compressed


# --- scale ------------------------------------------------------------------------------------


def scaled_walk(basis: str):
    """Nodes and updates of three steps, the second with a refresh, without any ε."""
    low_rank = fira_jax.LowRank(3, 2, basis=basis)
    inside = optax.chain(
        fira_jax.low_rank_project(low_rank),
        fira_jax.scale_by_adam_in_subspace(low_rank, eps=0.0),
        fira_jax.fira_residual_scale(eps=0.0),
    )
    outside = optax.chain(fira_jax.norm_growth_limit(low_rank), fira_jax.project_back())

    @jax.jit
    def walk(grads):
        def step(state, grad):
            node, first = inside.update(grad, state[0])
            update, second = outside.update(node, state[1])
            without = node.replace(residual_scale=None, residual_leak=None)
            return (first, second), (
                {"raw": node.raw, "core": node.core, "phi": node.residual_scale},
                {"whole": update, "inside": fira_jax.project_back().update(without, (None,))[0]},
                second[0].previous,
            )

        state = inside.init(grads[0]), outside.init(grads[0])
        return jax.lax.scan(step, state, grads)[1]

    return walk


@pytest.mark.parametrize("basis", ["svd", "randomized"])
def test_scaled_gradients_scale_the_pieces(basis):
    """By c: R by c, N not at all, φ by 1/c, and so the residual part of the update not at all."""
    walk = scaled_walk(basis)

    @examples(max_examples=10)
    @given(seed=SEEDS, power=st.integers(-30, 30))
    def check(seed, power):
        c = 2.0**power  # exact in floating point, so that nothing else changes
        grads = normal(seed, 5, 5, 8)
        nodes, updates, norms = walk(grads)
        scaled_nodes, scaled_updates, scaled_norms = walk(np.float32(c) * grads)
        np.testing.assert_allclose(scaled_nodes["raw"], c * nodes["raw"], rtol=1e-6)
        np.testing.assert_allclose(scaled_nodes["core"], nodes["core"], rtol=1e-6)
        np.testing.assert_allclose(scaled_nodes["phi"], nodes["phi"] / c, rtol=1e-6)
        chex.assert_trees_all_close(scaled_updates, updates, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(scaled_norms, norms, rtol=1e-6)

    check()


# --- ways to run ------------------------------------------------------------------------------


def test_jit_no_jit_scan_and_vmap_over_seeds_agree():
    grads = {"w": normal(0, 3, 6, 9), "b": normal(2, 3, 4)}
    first = jax.tree.map(lambda g: g[0], grads)

    def method(seed):
        return fira_jax.fira(0.1, 3, 2, seed=seed)

    scanned, last = run(method(1), grads)
    by_seed = jax.vmap(lambda seed: run(method(seed), grads)[0])(jnp.arange(3))

    tx = method(1)
    jitted = jax.jit(tx.update)
    plain_state = jitted_state = tx.init(first)
    for t in range(3):
        grad = jax.tree.map(lambda g, t=t: jnp.asarray(g[t]), grads)
        plain, plain_state = tx.update(grad, plain_state, first)
        compiled, jitted_state = jitted(grad, jitted_state, first)
        at_t = jax.tree.map(lambda u, t=t: u[t], scanned)
        chex.assert_trees_all_close(plain, compiled, at_t, rtol=1e-4, atol=1e-5)
        chosen = jax.tree.map(lambda u, t=t: u[1, t], by_seed)
        chex.assert_trees_all_close(chosen, at_t, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(plain_state, jitted_state, last, rtol=1e-4, atol=1e-5)
    assert not np.allclose(by_seed["w"][0], by_seed["w"][1], rtol=1e-6)  # the seed is used


@pytest.mark.parametrize("basis", ["randomized", "random"])
def test_dtypes_agree_as_far_as_they_can(basis):
    """One problem in bfloat16, float32 and float64: the same walk to each dtype's precision."""
    grads64 = {"w": normal(0, 5, 6, 9, dtype=np.float64), "b": normal(1, 5, 4, dtype=np.float64)}
    grads64 = jax.tree.map(lambda g: g.astype(jnp.bfloat16).astype(np.float64), grads64)
    # One basis for all steps: which vectors lead may hang on the last digit.
    tx = fira_jax.fira(0.1, 3, 100, basis=basis)
    updates = {}
    for dtype in (jnp.bfloat16, jnp.float32, jnp.float64):
        with jax.enable_x64(dtype == jnp.float64):
            grads = jax.tree.map(lambda g, d=dtype: jnp.asarray(g, d), grads64)
            updates[dtype], state = run(tx, grads)
            arrays = jax.tree.leaves((updates[dtype], state[1].mu, state[1].nu))
            assert {x.dtype for x in arrays} == {jnp.dtype(dtype)}
            (norm,) = jax.tree.leaves(state[3])
            assert norm.dtype == jnp.promote_types(dtype, jnp.float32)  # bfloat16 has no 1.01

    def gap(a, b):
        difference = np.asarray(updates[a]["w"], np.float64) - np.asarray(updates[b]["w"])
        return np.linalg.norm(difference) / np.linalg.norm(updates[b]["w"])

    assert gap(jnp.float32, jnp.float64) < 1e-5
    assert gap(jnp.bfloat16, jnp.float32) < 0.05


def test_norms_and_products_are_at_least_float32():
    low_rank = fira_jax.LowRank(3)
    tx = optax.chain(
        fira_jax.low_rank_project(low_rank),
        fira_jax.scale_by_adam_in_subspace(low_rank),
        fira_jax.fira_residual_scale(),
    )
    grads = normal(0, 6, 9).astype(jnp.bfloat16)
    node, _ = jax.eval_shape(lambda g: tx.update(g, tx.init(g)), grads)
    for name in ("raw", "raw_energy", "core", "scale", "step_scale", "residual_scale", "energy"):
        value = jax.eval_shape(lambda node, name=name: getattr(node, name), node)
        assert value.dtype == jnp.float32, name
    assert (node.matrix.dtype, node.basis.dtype) == (jnp.bfloat16, jnp.bfloat16)

"""When bases are replaced, and that only those are."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax.contrib import MuonDimensionNumbers
from support import normal

import fira_jax
from fira_jax import refresh

EVERY_MATRIX = {"weight_dimension_numbers": MuonDimensionNumbers(-2, -1)}


def changes(low_rank: fira_jax.LowRank, grads: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Whether each matrix's basis changed at each step, ``[steps, *batch]``."""
    project = fira_jax.low_rank_project(low_rank)

    @jax.jit
    def run(grads):
        def step(state, grad):
            _, new = project.update(grad, state)
            changed = jax.tree.map(
                lambda old, new: jnp.any(old != new, axis=(-2, -1)), state.bases, new.bases
            )
            return new, changed

        return jax.lax.scan(step, project.init(jax.tree.map(lambda g: g[0], grads)), grads)[1]

    return jax.tree.map(np.asarray, run(grads))


def tree(steps: int) -> dict[str, np.ndarray]:
    """Leaves that share a canonical shape in every way: sides, stacks before and after singles."""
    shapes = {"a": (2, 4, 6), "b": (3, 6, 4), "c": (4, 6), "d": (6, 4), "e": (4, 6), "f": (5, 5)}
    return {name: normal(i, steps, *s) for i, (name, s) in enumerate(shapes.items())}


@pytest.mark.parametrize("gap", [1, 3])
def test_fixed_replaces_all_every_gap_steps(gap):
    for name, at in changes(fira_jax.LowRank(2, gap, **EVERY_MATRIX), tree(8)).items():
        for t in range(8):
            assert (at[t] == (t % gap == 0)).all(), (name, t)


def test_staggered_spreads_them_evenly():
    changed = changes(fira_jax.LowRank(2, 4, refresh="staggered", **EVERY_MATRIX), tree(12))
    by_step = np.concatenate([x.reshape(12, -1) for x in changed.values()], axis=1)
    assert by_step[0].all()  # nothing works without a first basis
    for period in (by_step[4:8], by_step[8:12]):
        assert (period.sum(axis=0) == 1).all()  # each once
        assert period.sum(axis=1).max() <= -(-by_step.shape[1] // 4)  # no step pays for more
    np.testing.assert_array_equal(by_step[4:8], by_step[8:12])


@pytest.mark.parametrize(("total", "gap"), [(1, 1), (1, 200), (7, 3), (24, 200), (1000, 16)])
def test_staggered_rule_replaces_each_once_a_gap(total, gap):
    counts = np.arange(gap, 2 * gap)
    rule = refresh.resolve("staggered")
    due = np.stack([rule.due((), t, gap, np.arange(total), total) for t in counts])
    assert (due.sum(axis=0) == 1).all()
    assert due.sum(axis=1).max() <= -(-total // gap)


def test_any_rule_will_do():
    def second_matrix_on_even_steps(count, index, total, gap):
        assert (total, gap) == (9, 7)
        return (index == 1) & (count % 2 == 0)

    low_rank = fira_jax.LowRank(2, 7, refresh=second_matrix_on_even_steps, **EVERY_MATRIX)
    changed = changes(low_rank, tree(3))
    by_step = np.concatenate([x.reshape(3, -1) for x in changed.values()], axis=1)
    expected = np.zeros((3, 9), bool)
    expected[[0, 2], 1] = True
    np.testing.assert_array_equal(by_step, expected)


def test_each_gradient_meets_its_own_basis():
    """However leaves of one shape are grouped for their factorization."""
    grads = {name: g[0] for name, g in tree(1).items()}
    project = fira_jax.low_rank_project(fira_jax.LowRank(2, basis="svd", **EVERY_MATRIX))
    nodes, _ = jax.jit(project.update)(grads, project.init(grads))
    for name, grad in grads.items():
        matrices = grad.reshape(-1, *grad.shape[-2:])
        for matrix, basis in zip(
            matrices,
            np.reshape(nodes[name].basis, (-1, *nodes[name].basis.shape[-2:])),
            strict=True,
        ):
            short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
            left = np.linalg.svd(short)[0][:, :2]
            np.testing.assert_allclose(np.abs(np.sum(left * basis, axis=0)), 1, atol=1e-4)


@pytest.mark.parametrize("basis", ["svd", "randomized"])
@pytest.mark.parametrize("entry", [np.inf, -np.inf, np.nan])
def test_a_gradient_that_cannot_be_factorized_keeps_its_basis(basis, entry):
    project = fira_jax.low_rank_project(fira_jax.LowRank(2, basis=basis, **EVERY_MATRIX))
    grads = {"w": normal(0, 2, 4, 6)}
    grads["w"][1, 2, 3] = entry
    before = project.init(grads)
    _, after = jax.jit(project.update)(grads, before)
    assert (after.bases["w"][0] != before.bases["w"][0]).any()
    np.testing.assert_array_equal(after.bases["w"][1], before.bases["w"][1])

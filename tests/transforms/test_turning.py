"""An optimizer in the subspace keeps its memory when the basis changes, whatever it remembers."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import Shuffled, history, normal

import fira_jax

LINEAR = {
    "momentum": lambda: optax.trace(0.9),
    "chain": lambda: optax.chain(optax.trace(0.9, nesterov=True), optax.scale(0.5)),
    "average": lambda: optax.ema(0.9),
}
OTHERS = {
    "lion": optax.scale_by_lion,
    "adam": optax.scale_by_adam,
    "rms": optax.scale_by_rms,
    "stddev": optax.scale_by_stddev,
    "belief": optax.scale_by_belief,
    "amsgrad": optax.scale_by_amsgrad,
    "rss": optax.scale_by_rss,
    "ademamix": optax.contrib.scale_by_ademamix,
    "simplified_ademamix": optax.contrib.scale_by_simplified_ademamix,
}
GRADS = {"w": normal(0, 7, 6, 8), "b": normal(1, 7, 8)}
PARAMS = {"w": jnp.ones((6, 8)), "b": jnp.ones(8)}


def walk(low_rank, inner, **options):
    return optax.chain(
        fira_jax.low_rank_project(low_rank),
        fira_jax.in_subspace(low_rank, inner, **options),
        fira_jax.project_back(),
    )


def at_full_rank(inner, basis="svd", moments="carry"):
    return walk(fira_jax.LowRank(6, 2, 1.0, basis=basis, moments=moments), inner)


@pytest.mark.parametrize("name", LINEAR)
def test_what_is_linear_does_not_notice_the_change_of_a_whole_basis(name):
    """At full rank the walk of a carried momentum is the momentum of the weight itself."""
    updates, _ = history(at_full_rank(LINEAR[name]()), GRADS, PARAMS)
    expected, _ = history(LINEAR[name](), GRADS, PARAMS)
    np.testing.assert_allclose(updates["w"], expected["w"], atol=2e-5)
    np.testing.assert_allclose(updates["b"], expected["b"], atol=2e-6)
    kept, _ = history(at_full_rank(LINEAR[name](), moments="keep"), GRADS, PARAMS)
    assert np.abs(kept["w"] - expected["w"]).max() > 0.1  # the test would notice


@pytest.mark.parametrize("name", OTHERS)
def test_a_carried_state_does_not_depend_on_signs_and_order_of_vectors(name):
    inner = OTHERS[name]()
    low_rank = functools.partial(fira_jax.LowRank, 3, 2, 1.0, moments="carry")
    plain, shuffled = (
        history(walk(low_rank(basis=basis), inner), GRADS, PARAMS)[0]["w"]
        for basis in ("svd", Shuffled())
    )
    assert np.abs(plain).max() > 0.1
    np.testing.assert_allclose(plain, shuffled, atol=2e-4 * np.abs(plain).max())


class Preconditioner(NamedTuple):
    """A left second-moment matrix, as Shampoo and SOAP have it, which turns on both sides."""

    left: Any

    def turned(self, turn):
        return Preconditioner(turn.each(lambda t, x: t @ x @ t.mT, self.left))


def left_preconditioner(state_type: type = Preconditioner) -> optax.GradientTransformation:
    def init(params):
        return state_type(jax.tree.map(lambda x: 1e-3 * jnp.eye(len(x)), params))

    def update(updates, state, params=None):
        left = jax.tree.map(lambda s, g: s + jnp.outer(g, g) if g.ndim < 2 else s + g @ g.T,
                            state.left, updates)  # fmt: skip
        return jax.tree.map(jnp.linalg.solve, left, updates), state_type(left)

    return optax.GradientTransformation(init, update)


class Plain(NamedTuple):
    left: Any


def test_a_state_of_ones_own_tells_how_it_turns():
    full = at_full_rank(left_preconditioner())
    updates, _ = history(full, GRADS, PARAMS)
    expected, _ = history(left_preconditioner(), GRADS, PARAMS)
    np.testing.assert_allclose(updates["w"], expected["w"], atol=2e-4)
    low_rank = fira_jax.LowRank(6, 2, 1.0, basis="svd", moments="carry")
    turned = lambda state, turn: Plain(turn.each(lambda t, x: t @ x @ t.mT, state.left))  # noqa: E731
    given, _ = history(walk(low_rank, left_preconditioner(Plain), turned=turned), GRADS, PARAMS)
    np.testing.assert_array_equal(given["w"], updates["w"])


def test_a_state_that_does_not_tell_is_refused_at_init():
    with pytest.raises(ValueError, match="how Plain turns with the basis is not known"):
        at_full_rank(left_preconditioner(Plain)).init(PARAMS)


def test_a_stack_turns_layer_by_layer():
    stack = normal(2, 7, 3, 6, 8)
    low_rank = fira_jax.LowRank(
        2, 2, 1.0, moments="carry", basis="svd", weight_dimension_numbers=lambda p: (-2, -1)
    )
    tx = walk(low_rank, optax.scale_by_lion())
    together, _ = history(tx, {"w": stack}, {"w": jnp.ones((3, 6, 8))})
    one = walk(fira_jax.LowRank(2, 2, 1.0, moments="carry", basis="svd"), optax.scale_by_lion())
    for i in range(3):
        alone, _ = history(one, {"w": stack[:, i]}, {"w": jnp.ones((6, 8))})
        np.testing.assert_allclose(together["w"][:, i], alone["w"], atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_one_optimizer_in_the_subspace_and_another_elsewhere(dtype):
    low_rank = fira_jax.LowRank(3, 2, 1.0)
    params = jax.tree.map(lambda x: x.astype(dtype), PARAMS)
    grads = jax.tree.map(lambda x: jnp.asarray(x, dtype), GRADS)
    both, states = history(
        walk(low_rank, optax.scale_by_lion(), elsewhere=optax.scale_by_adam()), grads, params
    )
    inside, _ = history(walk(low_rank, optax.scale_by_lion()), grads, params)
    outside, _ = history(optax.scale_by_adam(), grads, params)
    np.testing.assert_array_equal(both["w"], inside["w"])
    tolerance = 1e-6 if dtype == jnp.float32 else 0.02
    np.testing.assert_allclose(*(x["b"].astype(np.float32) for x in (both, outside)), tolerance)
    assert isinstance(states[1], fira_jax.transforms.InSubspaceState)
    assert states[1].inner.mu["b"] == states[1].elsewhere.mu["w"] == optax.MaskedNode()
    assert states[1].elsewhere.mu["b"].dtype == dtype

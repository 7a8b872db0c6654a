"""Whose each array of a state is: told by structure and types, however init was wrapped."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest

import fira_jax
from fira_jax.state_owners import owned_state

PARAMS = {"w": jnp.ones((8, 16)), "b": jnp.ones(16)}


def fira():
    return fira_jax.fira(1e-2, rank=4)


def wrapped(wrap):
    tx = fira()
    return optax.GradientTransformation(wrap(tx.init), tx.update)


def rows(tx, params):
    return {row.path: row for row in fira_jax.describe(tx, params).rows}


def test_an_init_that_was_jitted_and_traced_before_says_the_same_again():
    tx = wrapped(jax.jit)
    tx.init(PARAMS)
    first, again = (fira_jax.describe(tx, PARAMS) for _ in range(2))
    assert str(first) == str(again) == str(fira_jax.describe(fira(), PARAMS))


def test_shardings_of_a_jitted_init_do_not_replicate():
    mesh = jax.sharding.AbstractMesh((2,), ("x",))
    tx = wrapped(jax.jit)
    tx.init(PARAMS)
    spec = jax.sharding.PartitionSpec
    shardings = {
        "w": jax.sharding.NamedSharding(mesh, spec(None, "x")),
        "b": jax.sharding.NamedSharding(mesh, spec()),
    }
    state = fira_jax.state_shardings(tx, PARAMS, shardings)
    assert state == fira_jax.state_shardings(fira(), PARAMS, shardings)
    assert tuple(state[1].mu["w"].spec) == (None, "x")


def test_an_init_mapped_over_models_is_read_with_the_models_axis():
    models = jax.tree.map(lambda x: jnp.stack([x] * 3), PARAMS)
    found = rows(wrapped(jax.vmap), models)
    alone = rows(fira(), PARAMS)
    assert found["w"].view.batch_shape == (3,)
    assert found["w"].state_bytes == 3 * alone["w"].state_bytes
    assert found["w"].adam_bytes == 3 * alone["w"].adam_bytes


def test_lookahead_keeps_its_state_for_the_fast_weights():
    both = optax.LookaheadParams.init_synced(PARAMS)
    found = rows(optax.lookahead(fira(), 5, 0.5), both)
    assert found["fast/w"].view.rank == 4
    assert found["fast/w"].state_bytes == rows(fira(), PARAMS)["w"].state_bytes
    assert found["slow/w"].view is None


def test_names_of_parameters_that_are_names_of_fields_mean_nothing():
    params = {"bases": PARAMS["w"], "count": jnp.ones(()), "mu": PARAMS["w"]}
    found, plain = rows(fira(), params), rows(fira(), PARAMS)
    assert found["bases"].state_bytes == found["mu"].state_bytes == plain["w"].state_bytes
    assert found["count"].state_bytes == found["count"].adam_bytes == 8
    _, owned, _ = owned_state(fira(), params)
    assert [x.path for x in owned if x.basis] == ["0/bases/bases", "0/bases/mu"]


def test_fields_of_a_parameter_container_that_are_names_of_fields_mean_nothing():
    class Parameters(NamedTuple):
        count: jax.Array
        w: jax.Array

    found = rows(fira(), Parameters(jnp.ones(()), PARAMS["w"]))
    assert found["count"].state_bytes == 8


@pytest.mark.parametrize("container", [list, tuple])
def test_a_sequence_of_parameters_is_no_chain(container):
    found = rows(fira(), container([PARAMS["w"], jnp.ones(())]))
    assert found["0"].state_bytes == rows(fira(), PARAMS)["w"].state_bytes
    assert found["1"].state_bytes == 8


def test_paths_that_read_alike_are_two_parameters():
    params = {"a/b": PARAMS["w"], "a": {"b": PARAMS["w"].T}}
    found = fira_jax.describe(fira(), params).rows
    assert [row.shape for row in found] == [(16, 8), (8, 16)]
    assert [row.view.compress_input for row in found] == [False, True]
    assert sum(row.state_bytes for row in found) == 2 * rows(fira(), PARAMS)["w"].state_bytes


def test_what_cannot_be_seen_is_an_error():
    tx = fira()
    state = jax.eval_shape(tx.init, PARAMS)
    hidden = optax.GradientTransformation(
        lambda _: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state), tx.update
    )
    with pytest.raises(RuntimeError, match="keeps what it decided from being seen"):
        fira_jax.describe(hidden, PARAMS)


def test_a_state_of_another_rule_or_without_its_structure_is_named():
    grads = PARAMS
    fixed, lazy = (fira_jax.fira(1e-2, rank=4, refresh=rule) for rule in ("fixed", "lazy"))
    with pytest.raises(ValueError, match=r"another rule than refresh=Lazy.*a memory that it lacks"):
        lazy.update(grads, fixed.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match="no use for the memory it holds"):
        fixed.update(grads, lazy.init(PARAMS), PARAMS)
    project, *others = fixed.init(PARAMS)
    with pytest.raises(TypeError, match="LowRankProjectState, got <class 'dict'>: restore"):
        fixed.update(grads, (project._asdict(), *others), PARAMS)

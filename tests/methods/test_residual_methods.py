"""What holds for every method that does something of its own outside the subspace."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers
from support import normal, run

import fira_jax

STEPS = 6
NUMBERS = MuonDimensionNumbers(-2, -1)
METHODS = {
    "frugal": functools.partial(fira_jax.frugal, rank=2),
    "frugal, randk": functools.partial(fira_jax.frugal, rank=2, basis="randk"),
    "gwt": functools.partial(fira_jax.gwt, rank=0.5),
    "dct_adamw": functools.partial(fira_jax.dct_adamw, rank=2, error_feedback=True),
    "trion": functools.partial(fira_jax.trion, rank=2),
    "vlorp": functools.partial(fira_jax.vlorp, rank=1, pieces=2),
    "alice": functools.partial(fira_jax.alice, rank=2, basis=fira_jax.basis.Switching(1)),
    "racs": fira_jax.racs,
    "gradnormlorp": functools.partial(fira_jax.gradnormlorp, rank=2, basis="svd"),
}


def build(name, numbers=NUMBERS):
    options = {} if name == "racs" else {"update_proj_gap": 3}
    return METHODS[name](0.01, weight_dimension_numbers=numbers, **options)


@pytest.mark.parametrize("name", METHODS)
def test_stacks_are_separate_layers_and_no_gradient_poisons_the_state(name):
    """In bfloat16 or with float64 enabled nothing changes its type, either."""
    grads = normal(0, STEPS, 2, 6, 10)
    grads[0, 1] = 0  # one layer's first
    grads[3, 0, 2, 4] = np.nan  # at a refresh, of one layer
    grads[4, 1, 0, 0] = np.inf
    params = normal(1, 2, 6, 10)
    together = {"w": grads}
    apart = {"0": grads[:, 0], "1": grads[:, 1]}
    updates, state = run(
        build(name), together | apart, {"w": params, "0": params[0], "1": params[1]}
    )
    for layer in range(2):
        np.testing.assert_allclose(
            updates["w"][:, layer], updates[str(layer)], rtol=2e-3, atol=2e-5, err_msg=str(layer)
        )
    assert np.isfinite(updates["w"]).all()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
    assert (updates["w"][-1] != 0).any()


@pytest.mark.parametrize("name", METHODS)
def test_types_stay(name):
    shapes = {"w": (2, 6, 10), "b": (10,)}
    for dtype in (jnp.bfloat16, jnp.float32):
        with jax.enable_x64(dtype == jnp.float32):
            params = {k: jax.ShapeDtypeStruct(s, dtype) for k, s in shapes.items()}
            tx = build(name, {"w": NUMBERS, "b": None})
            state = jax.eval_shape(tx.init, params)
            updates, new = jax.eval_shape(tx.update, params, state, params)
            for before, after in ((params, updates), (state, new)):
                types = [
                    [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(tree)]
                    for tree in (jax.eval_shape(lambda x: x, before), after)
                ]
                assert types[0] == types[1]
            assert jnp.dtype("float64") not in {x.dtype for x in jax.tree.leaves(state)}


@pytest.mark.parametrize("name", ["gwt", "alice", "frugal with SGD"])
def test_the_residual_is_not_formed(name):
    """The update is the only array of the weight's size, where the method allows that."""
    if name == "frugal with SGD":
        tx = fira_jax.frugal(0.1, 8, rule="sgd", moments="keep", basis="haar")
    elif name == "gwt":
        tx = fira_jax.gwt(0.1, 8)
    else:
        low_rank = fira_jax.LowRank(8, basis="haar")  # Alice's residual, no refresh
        tx = optax.chain(
            fira_jax.low_rank_project(low_rank),
            fira_jax.scale_by_adam_in_subspace(low_rank),
            fira_jax.equalize_residual(low_rank),
            fira_jax.norm_growth_limit(low_rank),
            fira_jax.project_back(),
        )
    params = jax.ShapeDtypeStruct((512, 1024), jnp.float32)
    state = jax.eval_shape(tx.init, params)
    compiled = jax.jit(tx.update).lower(params, state, params).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.3 * 4 * 512 * 1024


def test_galore_with_adafactor():
    adafactor = optax.chain(
        optax.scale_by_factored_rms(min_dim_size_to_factor=1), optax.clip_by_block_rms(1.0)
    )
    tx = fira_jax.galore(0.1, 4, base_optimizer=adafactor)
    params = jax.ShapeDtypeStruct((8, 12), jnp.float32)
    sizes = [x.size for x in jax.tree.leaves(jax.eval_shape(tx.init, params)) if x.ndim]
    placeholder = 1  # Optax keeps an array of one where the second moment is factored
    assert sum(sizes) == 8 * 4 + 4 + 12 + placeholder
    grad = jnp.asarray(normal(0, 8, 12))
    updates, _ = jax.jit(tx.update)(grad, tx.init(grad), grad)
    assert np.linalg.matrix_rank(updates, tol=1e-5) == 4

"""What a model's tree may look like, and what becomes of the optimizer's state."""

import dataclasses
import functools
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from family import VARIANTS, build
from flax import nnx
from test_optax_contract import (
    RATE,
    SETTINGS,
    assert_close,
    assert_same,
    at,
    make_grads,
    make_params,
    plain,
    train,
)

import fira_jax

STEPS = 7


class Block(NamedTuple):
    kernel: Any
    bias: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    weights: Any
    unused: Any


@pytest.mark.parametrize(
    "build",
    [
        lambda kernel, bias: (kernel, bias),
        lambda kernel, bias: [[kernel], {"b": (bias, None)}, None],
        lambda kernel, bias: Layer(Block(kernel, (bias,)), None),
        lambda kernel, bias: flax.core.freeze({"params": {"Dense_0": Block(kernel, bias)}}),
    ],
    ids=["tuple", "list, dict and None", "dataclass of NamedTuples", "FrozenDict of linen"],
)
def test_any_container(build):
    params = make_params()
    grads = make_grads(params)
    tx = fira_jax.fira(RATE, **SETTINGS)
    got, state = train(tx, build(**params), build(**grads))
    assert_close(got, build(**plain("fira")[0]))
    assert jax.tree.structure(optax.tree.get(state, "nu")) == jax.tree.structure(got)


def sharded_metadata(optimizer):
    """The paths of state leaves that carry a sharding, with it; Flax 0.12.0 calls it otherwise."""
    return {
        "/".join(map(str, path)): variable.get_metadata()[name]
        for path, variable in nnx.to_flat_state(nnx.state(optimizer))
        for name in ("out_sharding", "sharding_names")
        if variable.get_metadata().get(name)
    }


def test_nnx_optimizer():
    """The same steps as without it, and no metadata of the kernel's axes on a state of others."""
    params = make_params()
    grads = make_grads(params)

    def model():
        init = nnx.with_partitioning(
            lambda *_: params["kernel"], (None, "model"), eager_sharding=False
        )
        return nnx.Linear(
            6, 10, kernel_init=init, bias_init=lambda *_: params["bias"], rngs=nnx.Rngs(0)
        )

    adam = nnx.Optimizer(model(), optax.adam(RATE), wrt=nnx.Param)
    assert sharded_metadata(adam)["opt_state/0/mu/kernel"] == (None, "model")

    trained = model()
    optimizer = nnx.Optimizer(trained, fira_jax.fira(RATE, **SETTINGS), wrt=nnx.Param)
    assert sharded_metadata(optimizer) == {}

    for step in range(STEPS):
        grad = at(grads, step)

        def linear_loss(model, grad=grad):
            return jnp.sum(model.kernel * grad["kernel"]) + jnp.sum(model.bias * grad["bias"])

        optimizer.update(trained, nnx.grad(linear_loss)(trained))
    got = {"kernel": trained.kernel[...], "bias": trained.bias[...]}
    assert_close(got, plain("fira")[0])


# --- Life of the state -------------------------------------------------------------------------


def test_abstract_init():
    """As shardings and restored checkpoints are planned; what a step leaves has the same types."""
    tx = fira_jax.fira(RATE, **SETTINGS)
    planned = jax.eval_shape(tx.init, jax.eval_shape(make_params))
    _, state = plain("fira")
    assert jax.tree.structure(planned) == jax.tree.structure(state)
    for x, y in zip(jax.tree.leaves(planned), jax.tree.leaves(state), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)


def test_map_params_reaches_what_belongs_to_parameters_and_no_counter():
    params = make_params()
    tx = fira_jax.fira(RATE, **SETTINGS)
    _, state = plain("fira")
    assert_same(optax.tree.map_params(tx, lambda x: x, state), state)
    zeroed = optax.tree.map_params(tx, jnp.zeros_like, state)
    assert {int(x) for _, x in optax.tree.get_all_with_path(zeroed, "count")} == {STEPS}
    for name in ("bases", "mu", "nu", "previous"):
        assert all(not x.any() for x in jax.tree.leaves(optax.tree.get(zeroed, name))), name
    shapes = optax.tree.map_params(
        tx, lambda _, p: p.shape, state, params, is_leaf=lambda x: isinstance(x, optax.MaskedNode)
    )
    assert optax.tree.get(shapes, "mu") == {"kernel": (6, 10), "bias": (10,)}


def test_extra_arguments_pass_without_retracing():
    params = make_params()
    grads = make_grads(params)
    tx = fira_jax.fira(RATE, **SETTINGS)
    traces = 0

    @jax.jit
    def update(grads, state, params, value):
        nonlocal traces
        traces += 1
        return tx.update(grads, state, params, value=value, unheard_of=1)

    state = tx.init(params)
    for step in range(4):
        updates, state = update(at(grads, step), state, params, float(step))
        params = optax.apply_updates(params, updates)
    assert traces == 1


def test_extra_arguments_reach_the_inner_transformation():
    def update(updates, state, params=None, *, value, **_):
        return jax.tree.map(lambda u: u * value, updates), state

    inner = optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
    tx = fira_jax.galore(RATE, **SETTINGS, base_optimizer=inner)
    params = make_params()
    grads, state = at(make_grads(params), 0), tx.init(params)
    once, thrice = (tx.update(grads, state, params, value=v)[0] for v in (1.0, 3.0))
    assert_close(thrice, jax.tree.map(lambda u: 3 * u, once))


def test_scan_with_donated_state():
    params = make_params()
    grads = make_grads(params)
    tx = fira_jax.fira(RATE, **SETTINGS)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def run(params, state, grads):
        def step(carry, grad):
            params, state = carry
            updates, state = tx.update(grad, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), grads)[0]

    donated = jax.tree.map(jnp.copy, (params, tx.init(params)))
    got, state = run(*donated, grads)
    assert all(x.is_deleted() for x in jax.tree.leaves(donated))
    assert_close(got, plain("fira")[0])
    assert_close(state[:2], plain("fira")[1][:2])


def test_bfloat16():
    """States in the parameters' dtype, unless asked for; limiter and counters as ever."""
    params = make_params(jnp.bfloat16)
    grads = make_grads(params)
    tx = fira_jax.fira(10 * RATE, **SETTINGS)
    got, state = train(tx, params, grads, jit=True)
    assert {x.dtype for x in jax.tree.leaves(got)} == {jnp.dtype(jnp.bfloat16)}
    for name in ("bases", "mu", "nu"):
        leaves = jax.tree.leaves(optax.tree.get(state, name))
        assert {x.dtype for x in leaves} == {jnp.dtype(jnp.bfloat16)}, name
    assert optax.tree.get(state, "previous")["kernel"].dtype == jnp.float32

    wide = jax.tree.map(lambda x: x.astype(jnp.float32), (params, grads))
    expected, _ = train(tx, *wide, jit=True)
    moved = np.linalg.norm(expected["kernel"] - wide[0]["kernel"])
    gap = np.linalg.norm(np.asarray(got["kernel"], np.float32) - expected["kernel"])
    # A weight near 1 is a multiple of 1/256 here, and each of seven steps rounds.
    rounding = np.sqrt(STEPS * params["kernel"].size) / 256
    assert gap < rounding < moved


@pytest.mark.parametrize("variant", [name for name in VARIANTS if not name.startswith("lora_pro")])
@pytest.mark.parametrize("nothing", [(), {}, []], ids=str)
def test_a_tree_of_nothing_is_an_optimizers_too(variant, nothing):
    """As Optax's own; LoRA-Pro alone needs something: pairs of factors."""
    tx = build(variant)
    updates, state = tx.update(nothing, tx.init(nothing), nothing)
    assert updates == nothing
    tx.update(nothing, state, nothing)

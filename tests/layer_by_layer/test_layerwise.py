"""Updating inside the backward pass: the same step, without the model's gradient."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import normal

import fira_jax
from fira_jax.jax_internals import inner_programs, loop_of

LAYERS, WIDTH, INNER, VOCABULARY, BATCH, LENGTH = 3, 6, 10, 11, 4, 5
MATRICES = fira_jax.match_paths(("embedding", "head", "mlp"))


def block(layer: Any, x: jax.Array) -> jax.Array:
    kernel = layer["mlp"]["kernel"]
    return x + jnp.tanh(x @ kernel + layer["bias"]) @ kernel.T


def embed(outer: Any, tokens: jax.Array) -> jax.Array:
    return outer["embedding"][tokens[:, :-1]]


def head_loss(outer: Any, x: jax.Array, tokens: jax.Array) -> jax.Array:
    head = outer["head"] if "head" in outer else outer["embedding"].T
    return fira_jax.chunked_cross_entropy(x, head, tokens[:, 1:], 4).mean()


def loss(params: Any, tokens: jax.Array) -> jax.Array:
    """The same model in the ordinary way, all logits at once."""
    x = embed(params, tokens)
    x, _ = jax.lax.scan(lambda x, layer: (block(layer, x), None), x, params["layers"])
    head = params["head"] if "head" in params else params["embedding"].T
    logits = x @ head
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


def make_params(dtype: Any, *, tied: bool = False, layers: int = LAYERS) -> Any:
    params = {
        "embedding": normal(0, VOCABULARY, WIDTH),
        "layers": {
            "bias": 0.1 * normal(1, layers, INNER),
            "mlp": {"kernel": 0.5 * normal(2, layers, WIDTH, INNER)},
        },
        "head": normal(3, WIDTH, VOCABULARY),
    }
    if tied:
        del params["head"]
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), params)


def make_tokens(steps: int) -> jax.Array:
    shape = (steps, BATCH, LENGTH + 1)
    return jnp.asarray(np.random.default_rng(5).integers(0, VOCABULARY, shape))


def model(tx: Any, **options: Any) -> fira_jax.Layerwise:
    return fira_jax.layerwise(tx, embed=embed, block=block, head_loss=head_loss, **options)


def both_ways(params: Any, tx: Any, steps: int, **options: Any) -> tuple[Any, Any]:
    """Parameters, losses and gradient norms of the layerwise and of the ordinary run."""
    init, step = model(tx, **options)
    clip = options.get("clip_norm")
    whole = tx if clip is None else optax.chain(optax.clip_by_global_norm(clip), tx)

    def layerwise(carry: Any, tokens: jax.Array) -> Any:
        *carry, metrics = step(*carry, tokens)
        return tuple(carry), metrics

    def ordinary(carry: Any, tokens: jax.Array) -> Any:
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params, tokens)
        updates, state = whole.update(grads, state, params)
        metrics = {"loss": value, "grad_norm": optax.global_norm(grads)}
        return (optax.apply_updates(params, updates), state), metrics

    @jax.jit
    def run(tokens: jax.Array) -> Any:
        def one(step: Any, state: Any) -> Any:
            (last, _), metrics = jax.lax.scan(step, (params, state), tokens)
            return last, metrics

        return one(layerwise, init(params)), one(ordinary, whole.init(params))

    return run(make_tokens(steps))


def largest_gap(one: Any, other: Any) -> float:
    """Over all arrays, the largest difference relative to the largest entry."""
    gap = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)), one, other)
    return float(max(jax.tree.leaves(gap)))


@pytest.mark.parametrize(
    ("tied", "options"),
    [(False, {}), (True, {"micro_batches": 2, "clip_norm": 6.0})],
    ids=["plain", "tied, clipped and in micro-batches"],
)
def test_fifty_steps_are_those_of_the_ordinary_step_in_float64(tied, options):
    with jax.enable_x64(True):
        tx = fira_jax.fira(
            0.02, 3, 12, basis="svd", weight_decay=0.1, weight_dimension_numbers=MATRICES
        )
        ours, ordinary = both_ways(make_params(jnp.float64, tied=tied), tx, 50, **options)
        assert ordinary[1]["loss"].dtype == jnp.float64
        if "clip_norm" in options:
            assert 5 < jnp.sum(ordinary[1]["grad_norm"] > options["clip_norm"]) < 45
        assert largest_gap(ours, ordinary) < 1e-9


def test_the_state_is_one_optimizer_state_a_layer():
    tx = fira_jax.fira(0.02, 3, weight_dimension_numbers=MATRICES)
    params = make_params(jnp.float32)
    state = jax.eval_shape(model(tx).init, params)
    assert state.keys() == params.keys()
    one = jax.tree.map(lambda x: x[0], params["layers"])
    alone = jax.eval_shape(tx.init, {"layers": one})
    assert [x.shape for x in jax.tree.leaves(state["layers"])] == [
        (LAYERS, *x.shape) for x in jax.tree.leaves(alone)
    ]


def stacks_made(jaxpr: Any, shape: tuple[int, ...]) -> list[str]:
    """Names of the operations, however deep, that make a new array of this shape."""
    made = []
    for equation in jaxpr.eqns:
        inner = list(inner_programs(equation))
        for program in inner:
            made += stacks_made(program, shape)
        outputs = equation.outvars
        if equation.primitive.name == "scan":
            outputs = outputs[loop_of(equation).carried :]  # the carry is written in place
        elif inner:
            outputs = []  # made inside, as counted above
        if any(getattr(x.aval, "shape", None) == shape for x in outputs):
            made.append(equation.primitive.name)
    return made


def test_neither_the_gradient_nor_a_second_copy_of_the_weights_exists():
    tx = fira_jax.fira(0.02, 2, weight_dimension_numbers=MATRICES)
    params, tokens = make_params(jnp.float32), make_tokens(1)[0]
    stack = params["layers"]["mlp"]["kernel"].shape

    init, step = model(tx)
    jaxpr = jax.make_jaxpr(step)(params, jax.eval_shape(init, params), tokens)
    assert stacks_made(jaxpr.jaxpr, stack) == ["dynamic_update_slice"]

    def ordinary(params: Any, state: Any, tokens: jax.Array) -> Any:
        updates, state = tx.update(jax.grad(loss)(params, tokens), state, params)
        return optax.apply_updates(params, updates), state

    jaxpr = jax.make_jaxpr(ordinary)(params, jax.eval_shape(tx.init, params), tokens)
    assert {"scan", "add"} < set(stacks_made(jaxpr.jaxpr, stack))  # the check is not blind


def test_all_of_a_donated_state_is_written_where_it_stands():
    init, step = model(optax.adam(0.1))
    params, tokens = make_params(jnp.float32), make_tokens(1)[0]
    state = init(params)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, tokens).compile()
    whole = sum(x.nbytes for x in jax.tree.leaves((params, state)))
    assert compiled.memory_analysis().alias_size_in_bytes >= whole


@pytest.mark.parametrize(
    "tx",
    [
        optax.chain(optax.clip_by_global_norm(1.0), fira_jax.fira(0.1, 2)),
        optax.apply_if_finite(optax.adam(0.1), 3),
        optax.chain(optax.scale_by_adam(), optax.normalize_by_update_norm()),
    ],
    ids=["clip_by_global_norm", "apply_if_finite", "normalize_by_update_norm"],
)
def test_a_chain_that_needs_the_whole_tree_is_refused(tx):
    with pytest.raises(ValueError, match=r"depends on parameter '.+' besides '.+'.*clip_norm"):
        model(tx).init(make_params(jnp.float32))


@pytest.mark.parametrize(
    "tx",
    [
        fira_jax.galore(0.1, 2, basis="randomized"),
        fira_jax.apollo_mini(0.1),
        optax.inject_hyperparams(optax.adamw)(learning_rate=0.1),
        optax.MultiSteps(fira_jax.fira(0.1, 2), 2).gradient_transformation(),
        optax.contrib.muon(0.1),
        optax.chain(optax.clip_by_block_rms(1.0), optax.adafactor(0.1)),
        optax.contrib.reduce_on_plateau(),
    ],
    ids=["galore", "apollo_mini", "inject", "multi_steps", "muon", "adafactor", "plateau"],
)
def test_a_chain_that_works_parameter_by_parameter_is_accepted(tx):
    jax.eval_shape(model(tx).init, make_params(jnp.float32))


def test_a_pattern_that_matches_only_in_the_layers_raises_and_warns_of_nothing():
    tx = fira_jax.fira(0.1, 2, weight_dimension_numbers=fira_jax.match_paths("mlp"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = jax.eval_shape(model(tx).init, make_params(jnp.float32))
    assert state["layers"][0].bases["layers"]["mlp"]["kernel"].shape == (LAYERS, WIDTH, 2)


def test_what_is_wrong_is_said_at_init():
    params = make_params(jnp.float32)
    tx = optax.sgd(0.1)
    with pytest.raises(ValueError, match=r"entry 'blocks', got .*'embedding'"):
        model(tx, layers="blocks").init(params)
    with pytest.raises(ValueError, match=r"must be a mapping .* got list"):
        model(tx).init([params])
    uneven = {**params, "layers": {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 2))}}
    with pytest.raises(ValueError, match=r"one first axis.*\(3, 2\), \(2, 2\)"):
        model(tx).init(uneven)
    fira = fira_jax.fira(0.1, 2, weight_dimension_numbers=fira_jax.match_paths("atn"))
    with pytest.raises(ValueError, match="matches no parameter"):
        model(fira).init(params)
    with pytest.raises(ValueError, match="micro_batches must be at least 1, got 0"):
        model(tx, micro_batches=0)
    with pytest.raises(ValueError, match=r"clip_norm must be positive or None, got 0"):
        model(tx, clip_norm=0.0)


def test_weights_in_8_bits_are_decoded_layer_by_layer_and_rounded_at_random():
    tx = optax.adam(0.05)
    params = make_params(jnp.float32)
    matrices = {"mask": lambda p: jax.tree.map(lambda x: x.shape[-1] >= WIDTH, p), "min_size": 1}
    stored = fira_jax.precision.quantize_weights(params, group=4, **matrices)
    stored["layers"]["bias"] = params["layers"]["bias"]
    assert stored["layers"]["mlp"]["kernel"].codes.dtype == jnp.uint8
    exact = fira_jax.precision.dequantize_weights(stored)

    @jax.jit
    def train(params: Any, tokens: jax.Array, seed: int = 0) -> Any:
        init, step = model(tx, seed=seed)

        def one(carry: Any, tokens: jax.Array) -> Any:
            *carry, metrics = step(*carry, tokens)
            return tuple(carry), (metrics, carry[0])

        return jax.lax.scan(one, (params, init(params)), tokens)[1]

    tokens = make_tokens(40)
    (metrics, ours), (expected, floats) = train(stored, tokens), train(exact, tokens)
    np.testing.assert_allclose(metrics["loss"][0], expected["loss"][0], rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"][0], expected["grad_norm"][0], rtol=1e-5)
    assert metrics["loss"][-1] < 0.6 * metrics["loss"][0]
    assert metrics["loss"][-1] < 1.1 * expected["loss"][-1]

    assert jax.tree.structure(ours) == jax.tree.structure(stored)
    first, floats = (jax.tree.map(lambda x: x[0], tree) for tree in (ours, floats))
    np.testing.assert_allclose(first["layers"]["bias"], floats["layers"]["bias"], rtol=1e-5)
    decoded = fira_jax.precision.dequantize_weights(first)
    for name in ("embedding", "head"):
        spacing = jnp.repeat(first[name].spacing, 4, -1)[..., : decoded[name].shape[-1]]
        off = (decoded[name] - floats[name]) / spacing
        assert jnp.max(jnp.abs(off)) < 1.001
        assert jnp.std(off) > 0.05
    jax.tree.map(np.testing.assert_array_equal, train(stored, tokens)[1], ours)
    assert jnp.any(train(stored, tokens, 1)[1]["head"].codes[0] != first["head"].codes)


def test_no_two_layers_and_no_two_steps_are_rounded_alike():
    """Equal layers that get equal updates, below a level of the codes, part at once."""
    params = {"x": jnp.zeros(()), "layers": {"w": jnp.tile(normal(0, 1, 8, 64), (2, 1, 1))}}
    stored = fira_jax.precision.quantize_weights(
        params, mask={"x": False, "layers": {"w": True}}, min_size=1
    )
    push = optax.stateless(lambda updates, _: jax.tree.map(lambda g: g * 0 - 1e-3, updates))
    init, step = fira_jax.layerwise(
        push,
        embed=lambda outer, batch: batch + outer["x"],
        block=lambda layer, x: x @ layer["w"].T @ layer["w"],
        head_loss=lambda outer, x, batch: jnp.mean(x),
    )
    carry, seen = (stored, init(stored)), []
    for _ in range(3):
        params, state, _ = jax.jit(step)(*carry, jnp.ones((2, 64)))
        seen.append(np.asarray(params["layers"]["w"].codes, np.int32))
        carry = params, state
    before = np.asarray(stored["layers"]["w"].codes, np.int32)
    assert np.any((seen[0] - before)[0] != (seen[0] - before)[1])
    assert np.any(seen[0] - before != seen[1] - seen[0])
    assert state["layers"][-1].count.tolist() == [3, 3]

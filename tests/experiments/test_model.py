"""The LLaMA: sizes, causality, numerics, and how it behaves inside JAX's transformations."""

import dataclasses
import functools
import math
import warnings
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from experiments.llama.attention import causal_attention
from experiments.llama.model import Llama, LlamaConfig, SwiGLU, loss, next_token_loss

CONFIG = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    max_sequence_length=32,
    init_std=0.2,  # logits of order one, so that differences show
)
TOKENS = jax.random.randint(jax.random.key(1), (4, 24), 0, CONFIG.vocab_size)


def build(config: LlamaConfig) -> Llama:
    return Llama(config, rngs=nnx.Rngs(0))


def abstract(config: LlamaConfig) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: build(config)))


@pytest.fixture(scope="module")
def model() -> Llama:
    return build(CONFIG)


def with_config(model: Llama, **changes) -> Llama:
    """The same weights in a model of another config."""
    graphdef, _ = abstract(dataclasses.replace(CONFIG, **changes))
    return nnx.merge(graphdef, nnx.state(model))


@jax.jit
def loss_and_grads(model: Llama, tokens: jax.Array):
    graphdef, params = nnx.split(model)
    return jax.value_and_grad(lambda params: loss(nnx.merge(graphdef, params), tokens))(params)


@jax.jit
def logits(model: Llama, tokens: jax.Array) -> jax.Array:
    return model(tokens)


def relative(actual: jax.Array, expected: jax.Array) -> float:
    return float(jnp.linalg.norm(actual - expected) / jnp.linalg.norm(expected))


# Parameters


def test_parameters_are_stacked_and_named_for_the_projection_rule(model):
    shapes = {"/".join(path): param.shape for path, param in nnx.to_flat_state(nnx.state(model))}
    assert shapes == {
        "embedding": (64, 32),
        "final_norm/scale": (32,),
        "head": (32, 64),
        "layers/attn/k": (3, 32, 16),
        "layers/attn/o": (3, 32, 32),
        "layers/attn/q": (3, 32, 32),
        "layers/attn/v": (3, 32, 16),
        "layers/first_norm/scale": (3, 32),
        "layers/mlp/down": (3, 48, 32),
        "layers/mlp/gate": (3, 32, 48),
        "layers/mlp/up": (3, 32, 48),
        "layers/second_norm/scale": (3, 32),
    }
    assert CONFIG.parameter_count == sum(math.prod(shape) for shape in shapes.values())
    projected = {path for path in shapes if "attn" in path or "mlp" in path}
    assert projected == {path for path in shapes if len(shapes[path]) == 3}


def test_initial_values(model):
    q = model.layers.attn.q[...]
    assert relative(q.std(), 0.2) < 0.05
    assert abs(jnp.vdot(q[0], q[1])) < 0.2 * jnp.vdot(q[0], q[0])  # layers are drawn separately
    assert jnp.all(model.layers.first_norm.scale[...] == 1)
    other_seed = Llama(CONFIG, rngs=nnx.Rngs(1))
    assert relative(other_seed.embedding[...], model.embedding[...]) > 1


def test_bfloat16_parameters_are_the_rounded_float32_ones():
    square = dataclasses.replace(CONFIG, intermediate_size=CONFIG.hidden_size)
    full = SwiGLU(square, rngs=nnx.Rngs(0)).up[...]
    low = SwiGLU(dataclasses.replace(square, param_dtype="bfloat16"), rngs=nnx.Rngs(0)).up[...]
    assert low.dtype == jnp.bfloat16
    np.testing.assert_array_equal(low, full.astype(jnp.bfloat16))
    _, params = abstract(dataclasses.replace(CONFIG, param_dtype="bfloat16"))
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(params))


def test_tied_model_has_no_head():
    config = dataclasses.replace(CONFIG, tie_embeddings=True)
    _, state = abstract(config)
    assert "head" not in state
    assert config.parameter_count == CONFIG.parameter_count - 64 * 32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, "hidden_size=32 and num_heads=3"),
        ({"num_heads": 32}, "heads of even size"),
        ({"num_kv_heads": 3}, "num_kv_heads=3 and num_heads=4"),
        ({"num_layers": 0}, "num_layers must be a positive integer, got 0"),
        ({"vocab_size": 64.0}, "vocab_size must be a positive integer, got 64.0"),
    ],
)
def test_impossible_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)


# What it computes


def test_no_position_sees_a_later_token(model):
    before = logits(model, TOKENS)
    for changed in (1, 7, 23):
        after = logits(model, TOKENS.at[:, changed].add(1) % CONFIG.vocab_size)
        np.testing.assert_array_equal(after[:, :changed], before[:, :changed])
        difference = jnp.abs(after - before).max(axis=(0, 2))
        assert jnp.all(difference[changed:] > 1e-3)  # and every later position sees it


def test_positions_matter(model):
    swapped = TOKENS.at[:, 2].set(TOKENS[:, 5]).at[:, 5].set(TOKENS[:, 2])
    assert relative(logits(model, swapped)[:, -1], logits(model, TOKENS)[:, -1]) > 1e-2


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize(("length", "blocks"), [(1, 2), (23, 2), (24, 5)])
def test_blocked_attention_equals_masked_attention(length, blocks, remat):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, length, h, 8)).astype(np.float32) for h in (6, 2, 2))
    ours = functools.partial(causal_attention, blocks=blocks, remat=remat)
    masked = functools.partial(jax.nn.dot_product_attention, is_causal=True)
    (expected, expected_vjp), (actual, vjp) = (
        jax.vjp(jax.jit(attention), q, k, v) for attention in (masked, ours)
    )
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    for grad, expected_grad in zip(vjp(expected), expected_vjp(expected), strict=True):
        np.testing.assert_allclose(grad, expected_grad, rtol=1e-5, atol=1e-5)


def test_loss_is_mean_negative_log_likelihood(model):
    probabilities = jax.nn.softmax(logits(model, TOKENS)[:, :-1])
    likelihood = np.take_along_axis(np.asarray(probabilities), TOKENS[:, 1:, None], axis=-1)
    value, _ = loss_and_grads(model, TOKENS)
    np.testing.assert_allclose(value, -np.log(likelihood).mean(), rtol=1e-5)
    uniform = next_token_loss(jnp.zeros((2, 3, 64), jnp.bfloat16), jnp.zeros((2, 3), int))
    np.testing.assert_allclose(uniform, math.log(64), rtol=1e-6)


def test_bfloat16_is_close_to_float32(model):
    low = with_config(model, dtype="bfloat16")
    assert jax.eval_shape(low, TOKENS).dtype == jnp.float32
    value, grads = loss_and_grads(low, TOKENS)
    expected_value, expected_grads = loss_and_grads(model, TOKENS)
    assert 0 < abs(value / expected_value - 1) < 5e-3
    for grad, expected in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        assert grad.dtype == jnp.float32
        assert relative(grad, expected) < 0.1


def test_rematerialisation_gives_the_same_gradients(model):
    again = with_config(model, remat=True)
    for kept, recomputed in zip(
        jax.tree.leaves(loss_and_grads(model, TOKENS)),
        jax.tree.leaves(loss_and_grads(again, TOKENS)),
        strict=True,
    ):
        np.testing.assert_allclose(recomputed, kept, rtol=1e-5, atol=1e-6)


def test_sequences_that_do_not_fit_are_refused(model):
    with pytest.raises(ValueError, match=r"1 to 32 tokens \(max_sequence_length\), got 33"):
        model(jnp.zeros((1, 33), int))
    with pytest.raises(ValueError, match="got 0"):
        loss(model, jnp.zeros((1, 1), int))


def test_a_token_outside_the_vocabulary_does_not_pass_silently(model):
    assert jnp.isnan(logits(model, jnp.full_like(TOKENS, CONFIG.vocab_size))).all()


# Inside JAX


def count_equations(jaxpr) -> int:
    inner = (
        sub
        for equation in jaxpr.eqns
        for value in equation.params.values()
        for sub in jax.tree.leaves(
            value, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        )
        if hasattr(sub, "eqns") or hasattr(sub, "jaxpr")
    )
    return len(jaxpr.eqns) + sum(count_equations(getattr(sub, "jaxpr", sub)) for sub in inner)


def test_program_does_not_grow_with_depth():
    sizes = []
    for depth in (2, 24):
        graphdef, params = abstract(dataclasses.replace(CONFIG, num_layers=depth))

        def step(params, tokens, graphdef=graphdef):
            return jax.value_and_grad(lambda p: loss(nnx.merge(graphdef, p), tokens))(params)

        sizes.append(count_equations(jax.make_jaxpr(step)(params, TOKENS).jaxpr))
    assert sizes[0] == sizes[1] > 100


def test_what_is_kept_for_the_backward_pass():
    def kept_shapes(remat: bool) -> Counter:
        graphdef, params = abstract(dataclasses.replace(CONFIG, remat=remat))

        def backward_pass(params):
            return jax.vjp(lambda p: loss(nnx.merge(graphdef, p), TOKENS), params)[1]

        # The backward pass is a function whose leaves are the arrays that it holds on to.
        leaves = jax.tree.leaves(jax.eval_shape(backward_pass, params))
        # Masks and positions differ, because attention is cut into other blocks.
        return Counter(x.shape for x in leaves if jnp.issubdtype(x.dtype, jnp.floating))

    usual, remat = kept_shapes(remat=False), kept_shapes(remat=True)
    layer_inputs = [shape for shape in remat if shape[0] == CONFIG.num_layers and len(shape) > 3]
    assert layer_inputs == [(3, 4, 23, 32)]
    kernel_outputs = {(3, 4 * 23, 16): 2, (3, 4 * 23, 32): 2, (3, 4 * 23, 48): 2}
    assert usual - remat == Counter(kernel_outputs)  # of k and v, q and o, gate and up
    assert not remat - usual


def test_nnx_optimizer_trains_it(model):
    model = nnx.clone(model)
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, tokens):
        value, grads = nnx.value_and_grad(loss)(model, tokens)
        optimizer.update(model, grads)
        return value

    losses = [float(step(model, optimizer, TOKENS)) for _ in range(20)]
    assert losses[-1] < 0.7 * losses[0]


def test_pure_step_donates_and_does_not_retrace(model):
    graphdef, params = nnx.split(nnx.clone(model))
    optimizer = optax.sgd(1e-2)
    traces = 0

    def step(params, opt_state, tokens):
        nonlocal traces
        traces += 1
        grads = jax.grad(lambda p: loss(nnx.merge(graphdef, p), tokens))(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    jitted = jax.jit(step, donate_argnums=(0, 1))
    given, opt_state = params, optimizer.init(params)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # JAX warns about donated buffers that it cannot use
        for _ in range(2):
            params, opt_state = jitted(params, opt_state, TOKENS)
    assert traces == 1
    assert all(array.is_deleted() for array in jax.tree.leaves(given))
    assert nnx.merge(graphdef, params).config == CONFIG

"""The weights of real trees, as the frameworks make them, and which matrices they are read as."""

import functools
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

import fira_jax

LAYERS, WIDTH, HEADS, SIZE, HIDDEN, VOCAB, EXPERTS = 3, 64, 4, 16, 160, 512, 5
INNER = HEADS * SIZE
RANK = 8


def array(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


# --- Trees ----------------------------------------------------------------------------------


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, _: Any = None) -> tuple[jax.Array, None]:
        x = x + nn.MultiHeadDotProductAttention(HEADS, name="attention")(nn.LayerNorm()(x))
        y = nn.Dense(HIDDEN, name="up")(nn.LayerNorm()(x))
        return x + nn.Dense(WIDTH, name="down")(nn.gelu(y)), None


class LinenModel(nn.Module):
    scan: bool = False
    axis: int = 0

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(VOCAB, WIDTH)(tokens)
        if self.scan:
            axes = {"params": self.axis}
            stack = nn.scan(LinenBlock, axes, split_rngs={"params": True}, length=LAYERS)
            x, _ = stack(name="layers")(x, None)
        else:
            for _ in range(LAYERS):
                x, _ = LinenBlock()(x)
        return nn.Dense(VOCAB, use_bias=False, name="lm_head")(nn.LayerNorm(name="last")(x))


def linen(model: nn.Module, x: Any = None) -> Any:
    x = jnp.zeros((1, 4), int) if x is None else x
    return jax.eval_shape(model.init, jax.random.key(0), x)["params"]


class LinenVision(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(WIDTH, (7, 7), name="stem")(x)
        x = nn.Conv(WIDTH, (3, 3), name="Conv_1")(nn.GroupNorm(8)(x))
        x = nn.Conv(WIDTH, (3, 3), feature_group_count=WIDTH, name="depthwise_conv")(x)
        return nn.Dense(10, name="head")(jnp.mean(x, (1, 2)))


class NnxBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.ln1, self.ln2 = (nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2))
        self.mha = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.up = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.down = nnx.Linear(HIDDEN, WIDTH, rngs=rngs)


class NnxModel(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, stacked: bool) -> None:
        self.embed = nnx.Embed(VOCAB, WIDTH, rngs=rngs)
        make = nnx.vmap(NnxBlock) if stacked else NnxBlock
        self.layers = make(rngs.fork(split=LAYERS) if stacked else rngs)
        self.norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, VOCAB, use_bias=False, rngs=rngs)


def nnx_params(stacked: bool) -> Any:
    model = nnx.eval_shape(lambda: NnxModel(nnx.Rngs(0), stacked))
    return nnx.state(model, nnx.Param)


def equinox(stacked: bool) -> Any:
    eqx = pytest.importorskip("equinox", reason="needs equinox")

    class Block(eqx.Module):
        attention: Any
        mlp: Any
        ln: Any
        conv: Any

        def __init__(self, key: jax.Array) -> None:
            self.attention = eqx.nn.MultiheadAttention(HEADS, WIDTH, key=key)
            self.mlp = eqx.nn.MLP(WIDTH, WIDTH, HIDDEN, 1, key=key)
            self.ln = eqx.nn.LayerNorm(WIDTH)
            self.conv = eqx.nn.Conv2d(WIDTH, 2 * WIDTH, 3, key=key)

    class Model(eqx.Module):
        embedding: Any
        blocks: Any

        def __init__(self, key: jax.Array) -> None:
            self.embedding = eqx.nn.Embedding(VOCAB, WIDTH, key=key)
            keys = jax.random.split(key, LAYERS)
            self.blocks = eqx.filter_vmap(Block)(keys) if stacked else [Block(k) for k in keys]

    model = eqx.filter_eval_shape(Model, jax.random.key(0))
    is_array = lambda x: isinstance(x, jax.ShapeDtypeStruct)  # noqa: E731
    return eqx.filter(model, is_array)


def haiku(stacked: bool) -> Any:
    hk = pytest.importorskip("haiku", reason="needs dm-haiku")

    def block(x: jax.Array) -> jax.Array:
        norm = functools.partial(hk.LayerNorm, -1, True, True)
        y = norm(name="first")(x)
        attention = hk.MultiHeadAttention(HEADS, SIZE, w_init_scale=1.0)
        x = x + attention(y, y, y)
        y = hk.Linear(HIDDEN)(norm(name="second")(x))
        return x + hk.Linear(WIDTH)(y)

    def model(tokens: jax.Array) -> jax.Array:
        x = hk.Embed(VOCAB, WIDTH)(tokens)
        return hk.experimental.layer_stack(LAYERS)(block)(x) if stacked else block(x)

    init = hk.transform(model).init
    return jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 4), int))


def keras() -> Any:
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras", reason="needs keras")
    inputs = keras.Input((4, WIDTH))
    x = inputs + keras.layers.MultiHeadAttention(HEADS, SIZE)(inputs, inputs)
    x = keras.layers.Dense(HIDDEN)(keras.layers.LayerNormalization()(x))
    x = keras.layers.Conv1D(WIDTH, 3, padding="same")(x)
    model = keras.Model(inputs, x)
    return {v.path: array(*v.shape) for v in model.trainable_variables}


HUGGING_FACE_FLAX = {  # of FlaxBertModel, which the package no longer has
    "embeddings": {
        "word_embeddings": {"embedding": array(VOCAB, WIDTH)},
        "LayerNorm": {"scale": array(WIDTH), "bias": array(WIDTH)},
    },
    "encoder": {
        "layer": {
            "0": {
                "attention": {
                    "self": {
                        name: {"kernel": array(WIDTH, INNER), "bias": array(INNER)}
                        for name in ("query", "key", "value")
                    },
                    "output": {"dense": {"kernel": array(INNER, WIDTH), "bias": array(WIDTH)}},
                },
                "intermediate": {"dense": {"kernel": array(WIDTH, HIDDEN), "bias": array(HIDDEN)}},
            }
        }
    },
    "lm_head": {"kernel": array(WIDTH, VOCAB)},
}

GEMMA = {  # of google-deepmind/gemma
    "embedder": {"input_embedding": array(VOCAB, WIDTH)},
    "layer_0": {
        "attn": {
            "q_einsum": {"w": array(HEADS, WIDTH, SIZE)},
            "kv_einsum": {"w": array(2, 1, WIDTH, SIZE)},
            "attn_vec_einsum": {"w": array(HEADS, SIZE, WIDTH)},
            "_query_norm": {"scale": array(SIZE)},
        },
        "pre_attention_norm": {"scale": array(WIDTH)},
        "mlp": {"gating_einsum": array(2, WIDTH, HIDDEN), "linear": array(HIDDEN, WIDTH)},
    },
    "final_norm": {"scale": array(WIDTH)},
}

TUNIX = {  # its Llama and Qwen
    "layers": [
        {
            "attn": {
                "q_proj": {"w": array(WIDTH, HEADS, SIZE)},
                "k_proj": {"w": array(WIDTH, 2, SIZE)},
                "o_proj": {"w": array(HEADS, SIZE, WIDTH)},
            },
            "input_layernorm": {"w": array(WIDTH)},
            "mlp": {"gate_proj": {"kernel": array(WIDTH, HIDDEN)}},
        }
    ],
    "lm_head": {"w": array(WIDTH, VOCAB)},
}

MOE = {
    "norm": {"scale": array(LAYERS, WIDTH)},
    "moe": {
        "router": {"kernel": array(LAYERS, WIDTH, EXPERTS)},
        "experts": {
            "wi": array(LAYERS, EXPERTS, WIDTH, HIDDEN),
            "wo": array(LAYERS, EXPERTS, HIDDEN, WIDTH),
        },
    },
}

LORA = {
    "q_proj": {
        "w": array(WIDTH, WIDTH),
        "w_lora_a": array(WIDTH, RANK),
        "w_lora_b": array(RANK, WIDTH),
    }
}

IN, OUT, BOTH = (WIDTH, HIDDEN), (HIDDEN, WIDTH), (WIDTH, INNER)
ATTENTION = {"query/kernel": BOTH, "key/kernel": BOTH, "value/kernel": BOTH, "out/kernel": BOTH}
DENSE = {"up/kernel": IN, "down/kernel": OUT}
EQUINOX = {
    **{f"attention/{name}_proj/weight": BOTH for name in ("query", "key", "value", "output")},
    "mlp/layers/0/weight": IN,
    "mlp/layers/1/weight": OUT,
    "conv/weight": (9 * WIDTH, 2 * WIDTH),
}
HAIKU = {
    "multi_head_attention/query/w": BOTH,
    "multi_head_attention/key/w": BOTH,
    "multi_head_attention/value/w": BOTH,
    "multi_head_attention/linear/w": BOTH,
    "linear/w": IN,
    "linear_1/w": OUT,
}

# For each tree the paths that are projected, by how they end, with the matrices' shape and number.
TREES: dict[str, tuple[Any, dict[str, tuple[int, int]], int]] = {
    "linen": (lambda: linen(LinenModel()), ATTENTION | DENSE, 1),
    "linen, scanned": (lambda: linen(LinenModel(scan=True)), ATTENTION | DENSE, LAYERS),
    "linen, scanned along axis 1": (
        lambda: linen(LinenModel(scan=True, axis=1)),
        ATTENTION | DENSE,
        LAYERS,
    ),
    "linen, convolutions": (
        lambda: linen(LinenVision(), jnp.zeros((1, 8, 8, 3))),
        {"stem/kernel": (147, WIDTH), "Conv_1/kernel": (9 * WIDTH, WIDTH)},
        1,
    ),
    "nnx": (lambda: nnx_params(False), ATTENTION | DENSE, 1),
    "nnx, stacked by vmap": (lambda: nnx_params(True), ATTENTION | DENSE, LAYERS),
    "equinox": (lambda: equinox(False), EQUINOX, 1),
    "equinox, stacked by vmap": (lambda: equinox(True), EQUINOX, LAYERS),
    "haiku": (lambda: haiku(False), HAIKU, 1),
    "haiku, layer_stack": (lambda: haiku(True), HAIKU, LAYERS),
    "keras": (
        keras,
        {
            "query/kernel": BOTH,
            "key/kernel": BOTH,
            "value/kernel": BOTH,
            "attention_output/kernel": BOTH,
            "dense/kernel": IN,
            "conv1d/kernel": (3 * HIDDEN, WIDTH),
        },
        1,
    ),
    "hugging face flax": (
        lambda: HUGGING_FACE_FLAX,
        {
            "query/kernel": BOTH,
            "key/kernel": BOTH,
            "value/kernel": BOTH,
            "attention/output/dense/kernel": BOTH,
            "intermediate/dense/kernel": IN,
        },
        1,
    ),
    "gemma": (
        lambda: GEMMA,
        {
            "q_einsum/w": BOTH,
            "kv_einsum/w": (WIDTH, SIZE),
            "attn_vec_einsum/w": BOTH,
            "gating_einsum": IN,
            "linear": OUT,
        },
        1,
    ),
    "tunix": (
        lambda: TUNIX,
        {
            "q_proj/w": BOTH,
            "k_proj/w": (WIDTH, 2 * SIZE),
            "o_proj/w": BOTH,
            "gate_proj/kernel": IN,
        },
        1,
    ),
    "experts": (lambda: MOE, {"experts/wi": IN, "experts/wo": OUT}, LAYERS * EXPERTS),
    "adapters": (lambda: LORA, {"q_proj/w": (WIDTH, WIDTH)}, 1),
}


@pytest.mark.parametrize("name", TREES)
def test_every_weight_matrix_is_taken_and_nothing_else(name):
    make, expected, count = TREES[name]
    tx = fira_jax.galore(1e-2, rank=RANK, weight_dimension_numbers=fira_jax.match_modules())
    rows = fira_jax.describe(tx, make()).rows
    found = {}
    for row in rows:
        if row.view is None:
            continue
        end = max((e for e in expected if row.path.endswith(e)), key=len, default=row.path)
        found[end] = row.view.matrix_shape
        batch = count if end not in ("kv_einsum/w", "gating_einsum") else 2
        assert math.prod(row.view.batch_shape) == batch, row
        assert row.state_bytes < row.adam_bytes, row
    assert found == expected


@pytest.mark.parametrize("name", ["linen", "linen, scanned", "gemma"])
def test_a_part_of_the_modules_may_be_asked_for(name):
    tree = TREES[name][0]()
    choose = fira_jax.match_modules("ATTN|attention")
    rows = fira_jax.describe(
        fira_jax.galore(1e-2, RANK, weight_dimension_numbers=choose), tree
    ).rows
    taken = [row.path for row in rows if row.view]
    assert taken
    assert all("att" in path for path in taken)


def test_embeddings_and_heads_are_left_alone_unless_asked_for():
    tree = TREES["linen"][0]()
    for exclude, count in ((None, 0), ((), 2)):
        options = {} if exclude is None else {"exclude": exclude}
        choose = fira_jax.match_modules(**options)
        tx = fira_jax.galore(1e-2, RANK, weight_dimension_numbers=choose)
        rows = fira_jax.describe(tx, tree).rows
        taken = [x.path for x in rows if x.view and VOCAB in x.shape]
        assert len(taken) == count, taken


def test_a_pattern_of_modules_that_finds_nothing():
    choose = fira_jax.match_modules("atn", "mpl")
    with pytest.raises(ValueError, match=r"match_modules\('atn', 'mpl'\) finds no matrix; the pat"):
        choose({"attn": {"kernel": array(8, 8)}})

"""BERT in Flax NNX, with a head that sorts texts into classes.

Layers are stacked and run in a scan, axes are named and paths chosen as in `llama/model.py`, so
that what is made for a LLaMA's layers fits these: "attn" and "mlp" pick out their matrices and
biases, and "bias" the latter.

    embedding/{tokens [V, D], positions, segments, norm/{scale, bias}}
    layers/attn/{q,k,v,o} [N, D, D]     layers/attn/{q,k,v,o}_bias [N, D]
    layers/mlp/{up,down} [N, in, out]   layers/mlp/{up,down}_bias
    layers/{first,second}_norm/{scale, bias} [N, D]
    classifier/{pooler [D, D], out [D, classes]} and their biases

There is no dropout: runs differ in what is compared, not in what is thrown away.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from experiments.llama.model import draw_kernel, matmul


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Architecture and numerics of a BERT; fields it shares with ``LlamaConfig`` mean the same.

    Args:
        vocab_size: Number of token ids.
        hidden_size: Width of the residual stream.
        intermediate_size: Inner width of the feed-forward block.
        num_layers: Number of layers.
        num_heads: Number of heads; divides ``hidden_size``.
        max_sequence_length: Number of positions.
        num_segments: Number of segment embeddings. All texts are of the first segment.
        norm_eps: Added to the variance in every normalization.
        init_std: Standard deviation of what is drawn.
        labels: The classes' names.
        dtype: Type of activations and matrix products.
        param_dtype: Type in which parameters are stored.
        remat: Keep only each layer's input for the backward pass.

    Raises:
        ValueError: If the heads do not divide the width.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    max_sequence_length: int
    num_segments: int = 2
    norm_eps: float = 1e-12
    init_std: float = 0.02
    labels: tuple[str, ...] = ("0", "1")
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    remat: bool = False

    def __post_init__(self):
        object.__setattr__(self, "dtype", jnp.dtype(self.dtype))
        object.__setattr__(self, "param_dtype", jnp.dtype(self.param_dtype))
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size must split into num_heads heads, got hidden_size={self.hidden_size} "
                f"and num_heads={self.num_heads}"
            )


class Classifier(nnx.Module):
    """An encoder and its head.

    Example:
        >>> config = EncoderConfig(vocab_size=64, hidden_size=32, intermediate_size=64,
        ...                        num_layers=2, num_heads=4, max_sequence_length=16)
        >>> model = Classifier(config, rngs=nnx.Rngs(0))
        >>> model(jnp.zeros((3, 16), jnp.int32), jnp.array([16, 9, 2])).shape
        (3, 2)

    References:
        Devlin et al., BERT, https://arxiv.org/abs/1810.04805.
    """

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embedding = Embedding(config, rngs=rngs)

        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap
        def stacked_layers(rngs: nnx.Rngs) -> Layer:
            return Layer(config, rngs=rngs)

        self.layers = stacked_layers(rngs)
        self.classifier = Head(config, rngs=rngs)

    def __call__(self, tokens_BxL: jax.Array, lengths_B: jax.Array) -> jax.Array:
        """Float32 logits of the classes [B, classes]; takes what :meth:`hidden` does."""
        return self.classifier(self.hidden(tokens_BxL, lengths_B))

    def hidden(self, tokens_BxL: jax.Array, lengths_B: jax.Array) -> jax.Array:
        """The residual stream after the last layer [B, L, D].

        Args:
            tokens_BxL: Integer token ids, padded with anything.
            lengths_B: How many tokens of each row are the text: no other is looked at.
        """
        x_BxLxD = self.embedding(tokens_BxL)

        def step(x_BxLxD: jax.Array, layer: Layer) -> tuple[jax.Array, None]:
            return layer(x_BxLxD, lengths_B), None

        if self.config.remat:
            step = jax.checkpoint(step, prevent_cse=False)  # the scan prevents it anyway
        x_BxLxD, _ = jax.lax.scan(step, x_BxLxD, self.layers)
        return x_BxLxD


class Embedding(nnx.Module):
    """Tokens, positions and the first segment, added and normalized."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        D = config.hidden_size
        self.dtype = config.dtype
        self.tokens = draw_kernel(config, rngs, config.vocab_size, D)
        self.positions = draw_kernel(config, rngs, config.max_sequence_length, D)
        self.segments = draw_kernel(config, rngs, config.num_segments, D)
        self.norm = _norm(config)

    def __call__(self, tokens_BxL: jax.Array) -> jax.Array:
        """Looks tokens up [B, L, D]."""
        x_BxLxD = jnp.take(self.tokens[...], tokens_BxL, axis=0)
        x_BxLxD += self.positions[: tokens_BxL.shape[1]] + self.segments[0]
        return self.norm(x_BxLxD.astype(self.dtype))


class Layer(nnx.Module):
    """Attention, then the feed-forward block; each is added and the sum normalized."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        self.attn = Attention(config, rngs=rngs)
        self.first_norm = _norm(config)
        self.mlp = FeedForward(config, rngs=rngs)
        self.second_norm = _norm(config)

    def __call__(self, x_BxLxD: jax.Array, lengths_B: jax.Array) -> jax.Array:
        """Maps the residual stream to the next layer's."""
        x_BxLxD = self.first_norm(x_BxLxD + self.attn(x_BxLxD, lengths_B))
        return self.second_norm(x_BxLxD + self.mlp(x_BxLxD))


class Attention(nnx.Module):
    """Self-attention in which every token of a text sees all others of it."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        D = config.hidden_size
        self.num_heads = config.num_heads
        self.q, self.k, self.v, self.o = (draw_kernel(config, rngs, D, D) for _ in "qkvo")
        self.q_bias, self.k_bias, self.v_bias, self.o_bias = (_bias(config, D) for _ in "qkvo")

    def __call__(self, x_BxLxD: jax.Array, lengths_B: jax.Array) -> jax.Array:
        """Mixes the tokens of each text."""
        B, L, _ = x_BxLxD.shape
        q_BxLxHxC, k_BxLxHxC, v_BxLxHxC = (
            _affine(x_BxLxD, kernel, bias).reshape(B, L, self.num_heads, -1)
            for kernel, bias in (
                (self.q, self.q_bias), (self.k, self.k_bias), (self.v, self.v_bias)
            )
        )  # fmt: skip
        mixed_BxLxHxC = jax.nn.dot_product_attention(
            q_BxLxHxC, k_BxLxHxC, v_BxLxHxC, key_value_seq_lengths=lengths_B
        )
        return _affine(mixed_BxLxHxC.reshape(B, L, -1), self.o, self.o_bias)


class FeedForward(nnx.Module):
    """Two matrices with a GELU between."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        D, F = config.hidden_size, config.intermediate_size
        self.up, self.up_bias = draw_kernel(config, rngs, D, F), _bias(config, F)
        self.down, self.down_bias = draw_kernel(config, rngs, F, D), _bias(config, D)

    def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
        """Transforms each position on its own."""
        x_BxLxF = jax.nn.gelu(_affine(x_BxLxD, self.up, self.up_bias), approximate=False)
        return _affine(x_BxLxF, self.down, self.down_bias)


class Head(nnx.Module):
    """BERT's pooler and a linear classifier, of the first token's vector."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        D, classes = config.hidden_size, len(config.labels)
        self.pooler, self.pooler_bias = draw_kernel(config, rngs, D, D), _bias(config, D)
        self.out, self.out_bias = draw_kernel(config, rngs, D, classes), _bias(config, classes)

    def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
        """Float32 logits [B, classes]."""
        x_BxD = jnp.tanh(_affine(x_BxLxD[:, 0], self.pooler, self.pooler_bias))
        return _affine(x_BxD, self.out, self.out_bias).astype(jnp.float32)


def _norm(config: EncoderConfig) -> nnx.LayerNorm:
    return nnx.LayerNorm(
        config.hidden_size,
        epsilon=config.norm_eps,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        use_fast_variance=False,
        rngs=nnx.Rngs(0),  # draws nothing
    )


def _bias(config: EncoderConfig, size: int) -> nnx.Param:
    return nnx.Param(jnp.zeros(size, config.param_dtype))


def _affine(x: jax.Array, kernel: nnx.Param, bias: nnx.Param) -> jax.Array:
    return matmul(x, kernel) + bias[...].astype(x.dtype)

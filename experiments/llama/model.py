"""LLaMA in Flax NNX: RMSNorm, rotary positions, SwiGLU, no biases.

All layers share one set of stacked parameters and run in a scan, so neither the program nor its
compile time grows with depth. Array names end in their axes:

    B batch   L sequence length   D hidden_size   F intermediate_size   V vocab_size
    H query heads   K key/value heads   C channels of one head   N layers (stacked parameters)

Parameter paths, with kernels laid out (in, out):

    embedding [V, D]              layers/attn/{q,k,v,o} [N, in, out]     final_norm/scale [D]
    head [D, V] unless tied       layers/mlp/{gate,up,down} [N, in, out]
                                  layers/{first,second}_norm/scale [N, D]

so that the words "attn" and "mlp" pick out exactly the matrices the papers project.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.typing import DTypeLike

from experiments.llama.attention import (
    Rope,
    RopeScaling,
    causal_attention,
    rope_table,
    rotate,
)
from experiments.mesh import split_rows


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Architecture and numerics of a LLaMA.

    Args:
        vocab_size: Number of token ids.
        hidden_size: Width of the residual stream.
        intermediate_size: Inner width of the SwiGLU block.
        num_layers: Number of transformer layers.
        num_heads: Number of query heads; divides ``hidden_size`` into even-sized heads.
        max_sequence_length: Longest sequence the model accepts.
        num_kv_heads: Number of key/value heads, a divisor of ``num_heads``; fewer than
            ``num_heads`` is grouped-query attention. 0 stands for ``num_heads``.
        rope_theta: Base of the rotary wavelengths.
        rope_scaling: How they are stretched, if they are; a dictionary of its fields will do.
        rms_eps: Added to the mean square in every RMSNorm.
        init_std: Standard deviation of the initial kernels and embeddings.
        tie_embeddings: Use the embedding as the output head.
        dtype: Type of activations and matrix products. Norms, rotations, softmax and logits are
            float32 whatever it is.
        param_dtype: Type in which parameters are stored.
        remat: Keep only each layer's input for the backward pass and recompute everything else. By
            default the kernels' outputs are kept too.

    Raises:
        ValueError: If sizes are not positive integers or do not divide as described.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    max_sequence_length: int
    num_kv_heads: int = 0
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rms_eps: float = 1e-6
    init_std: float = 0.02
    tie_embeddings: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    remat: bool = False

    def __post_init__(self):
        # One canonical spelling, so that equal configs hash equally and share a compiled program.
        object.__setattr__(self, "dtype", jnp.dtype(self.dtype))
        object.__setattr__(self, "param_dtype", jnp.dtype(self.param_dtype))
        if isinstance(self.rope_scaling, dict):
            object.__setattr__(self, "rope_scaling", RopeScaling(**self.rope_scaling))
        if self.num_kv_heads == 0:
            object.__setattr__(self, "num_kv_heads", self.num_heads)
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "max_sequence_length",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"hidden_size must split into num_heads heads of even size, got hidden_size="
                f"{self.hidden_size} and num_heads={self.num_heads}"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads must divide num_heads, got num_kv_heads={self.num_kv_heads} and "
                f"num_heads={self.num_heads}"
            )

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def parameter_count(self) -> int:
        """Number of parameters, known without building the model."""
        D = self.hidden_size
        attention = 2 * D * (self.num_heads + self.num_kv_heads) * self.head_dim
        layer = attention + 3 * D * self.intermediate_size + 2 * D
        embeddings = self.vocab_size * D * (1 if self.tie_embeddings else 2)
        return embeddings + self.num_layers * layer + D


class Llama(nnx.Module):
    """A LLaMA language model.

    Example:
        >>> config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64,
        ...                      num_layers=2, num_heads=4, max_sequence_length=16)
        >>> model = Llama(config, rngs=nnx.Rngs(0))
        >>> model(jnp.zeros((3, 16), jnp.int32)).shape
        (3, 16, 64)
    """

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embedding = draw_kernel(config, rngs, config.vocab_size, config.hidden_size)

        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap
        def stacked_layers(rngs: nnx.Rngs) -> Layer:
            return Layer(config, rngs=rngs)

        self.layers = stacked_layers(rngs)
        self.final_norm = RMSNorm(config)
        if not config.tie_embeddings:
            self.head = draw_kernel(config, rngs, config.hidden_size, config.vocab_size)

    def __call__(self, tokens_BxL: jax.Array, segments_BxL: jax.Array | None = None) -> jax.Array:
        """Predicts each position's next token: float32 logits [B, L, V].

        Takes and raises what :meth:`hidden` does.
        """
        return self.unembed(self.hidden(tokens_BxL, segments_BxL))

    def hidden(self, tokens_BxL: jax.Array, segments_BxL: jax.Array | None = None) -> jax.Array:
        """The residual stream after the last layer [B, L, D].

        Args:
            tokens_BxL: Integer token ids.
            segments_BxL: Which of several texts in a row each token belongs to, if there are
                several: none sees another.

        Raises:
            ValueError: If the sequences are empty or longer than the config allows.
        """
        config = self.config
        length = tokens_BxL.shape[1]
        if not 0 < length <= config.max_sequence_length:
            raise ValueError(
                f"expected sequences of 1 to {config.max_sequence_length} tokens "
                f"(max_sequence_length), got {length}"
            )
        rope = rope_table(length, config.head_dim, config.rope_theta, config.rope_scaling)
        x_BxLxD = split_rows(self.embed(tokens_BxL))

        def step(x_BxLxD: jax.Array, layer: Layer) -> tuple[jax.Array, None]:
            return split_rows(layer(x_BxLxD, rope, segments_BxL)), None

        # Until the backward pass, keep what the kernels produced and recompute the cheap rest
        # (norms, attention weights, gates): a third of the memory, and faster on CPU too.
        policy = None if config.remat else jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        step = jax.checkpoint(step, policy=policy, prevent_cse=False)  # the scan prevents it anyway
        x_BxLxD, _ = jax.lax.scan(step, x_BxLxD, self.layers)
        return x_BxLxD

    def embed(self, tokens_BxL: jax.Array) -> jax.Array:
        """Looks up token embeddings; an id outside the vocabulary becomes NaN."""
        return jnp.take(self.embedding[...], tokens_BxL, axis=0).astype(self.config.dtype)

    def unembed(self, x_BxLxD: jax.Array) -> jax.Array:
        """Turns the residual stream into float32 logits [B, L, V]."""
        head = self.embedding[...].T if self.config.tie_embeddings else self.head[...]
        return matmul(self.final_norm(x_BxLxD), head, jnp.float32)


class Layer(nnx.Module):
    """One transformer layer: attention, then SwiGLU, each on a normalized residual stream."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        self.first_norm = RMSNorm(config)
        self.attn = Attention(config, rngs=rngs)
        self.second_norm = RMSNorm(config)
        self.mlp = SwiGLU(config, rngs=rngs)

    def __call__(
        self, x_BxLxD: jax.Array, rope: Rope, segments_BxL: jax.Array | None = None
    ) -> jax.Array:
        """Maps the residual stream to the next layer's, given the positions' ``rope_table``."""
        x_BxLxD = x_BxLxD + self.attn(self.first_norm(x_BxLxD), rope, segments_BxL)
        return x_BxLxD + self.mlp(self.second_norm(x_BxLxD))


class Attention(nnx.Module):
    """Causal self-attention with rotary positions and, if asked for, grouped queries."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        D, C = config.hidden_size, config.head_dim
        self.head_dim = C
        self.remat = config.remat
        self.q = draw_kernel(config, rngs, D, config.num_heads * C)
        self.k = draw_kernel(config, rngs, D, config.num_kv_heads * C)
        self.v = draw_kernel(config, rngs, D, config.num_kv_heads * C)
        self.o = draw_kernel(config, rngs, config.num_heads * C, D)

    def __call__(
        self, x_BxLxD: jax.Array, rope: Rope, segments_BxL: jax.Array | None = None
    ) -> jax.Array:
        """Mixes each position with itself and those before it, of its segment if there are any."""
        B, L, _ = x_BxLxD.shape
        q_BxLxHxC = rotate(matmul(x_BxLxD, self.q).reshape(B, L, -1, self.head_dim), rope)
        k_BxLxKxC = rotate(matmul(x_BxLxD, self.k).reshape(B, L, -1, self.head_dim), rope)
        v_BxLxKxC = matmul(x_BxLxD, self.v).reshape(B, L, -1, self.head_dim)
        # Scores take memory in proportion to L²; 256 queries at a time keep it to L.
        blocks = -(-L // 256) if self.remat else 2
        mixed_BxLxHxC = causal_attention(
            q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, blocks, self.remat, segments_BxL
        )
        return matmul(mixed_BxLxHxC.reshape(B, L, -1), self.o)


class SwiGLU(nnx.Module):
    """The gated feed-forward block."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        D, F = config.hidden_size, config.intermediate_size
        self.gate = draw_kernel(config, rngs, D, F)
        self.up = draw_kernel(config, rngs, D, F)
        self.down = draw_kernel(config, rngs, F, D)

    def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
        """Transforms each position on its own."""
        x_BxLxF = jax.nn.silu(matmul(x_BxLxD, self.gate)) * matmul(x_BxLxD, self.up)
        return matmul(x_BxLxF, self.down)


class RMSNorm(nnx.Module):
    """Root-mean-square normalization, computed in float32."""

    def __init__(self, config: LlamaConfig):
        self.eps = config.rms_eps
        self.scale = nnx.Param(jnp.ones(config.hidden_size, config.param_dtype))

    def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
        """Scales each position to root mean square one, then by the learned scale."""
        x = x_BxLxD.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps)
        return (x * self.scale[...].astype(jnp.float32)).astype(x_BxLxD.dtype)


def next_token_loss(logits_BxLxV: jax.Array, targets_BxL: jax.Array) -> jax.Array:
    """Mean cross-entropy in nats per token, its softmax taken in float32."""
    logits = logits_BxLxV.astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets_BxL).mean()


def loss(model: Llama, tokens: jax.Array) -> jax.Array:
    """Mean nats per token with which ``model`` predicts ``tokens[:, 1:]`` from ``tokens[:, :-1]``.

    A pure function of the parameters is one line away, and jits, differentiates and donates:

    Example:
        >>> config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64,
        ...                      num_layers=2, num_heads=4, max_sequence_length=16)
        >>> graphdef, params = nnx.split(Llama(config, rngs=nnx.Rngs(0)))
        >>> params_loss = lambda params, tokens: loss(nnx.merge(graphdef, params), tokens)
        >>> value, grads = jax.jit(jax.value_and_grad(params_loss))(params, jnp.ones((3, 17), int))

    Args:
        model: The model.
        tokens: Token ids [B, L+1]: L predictions for each row.

    Returns:
        A float32 scalar.
    """
    return next_token_loss(model(tokens[:, :-1]), tokens[:, 1:])


@functools.partial(jax.jit, static_argnames=("shape", "dtype"))
def _normal(key: jax.Array, shape: tuple[int, ...], std: float, dtype: Any) -> jax.Array:
    # Drawn in float32: bfloat16 samples have 256 values and no tails. Jitted, so that no float32
    # copy of a large bfloat16 model ever exists.
    return (std * jax.random.normal(key, shape, jnp.float32)).astype(dtype)


def draw_kernel(config: Any, rngs: nnx.Rngs, rows: int, columns: int) -> nnx.Param:
    """A matrix, normal with the model's ``init_std``, of its ``param_dtype``."""
    return nnx.Param(_normal(rngs.params(), (rows, columns), config.init_std, config.param_dtype))


def matmul(x: jax.Array, kernel: Any, dtype: Any = None) -> jax.Array:
    """``x [..., in]`` by a kernel, or by the module that stands in a kernel's place."""
    # One flat axis of tokens: with batch and sequence apart, XLA's CPU code takes nearly twice as
    # long over the gradient of the same product.
    flat = x.reshape(-1, x.shape[-1])
    if isinstance(kernel, nnx.Module):  # what experiments/llama/parametrization.py put in its place
        out = kernel(flat)
    else:
        out = jnp.dot(flat, kernel[...].astype(x.dtype), preferred_element_type=dtype)
    return out.reshape(*x.shape[:-1], -1)

"""LLaMA as the three functions that ``fira_jax.layerwise`` asks for, and its training step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import fira_jax
from experiments.llama.answers import answers
from experiments.llama.attention import rope_table
from experiments.llama.model import Layer, Llama, LlamaConfig, RMSNorm
from experiments.training.step import TrainState

Params = dict[str, Any]


class Parts(NamedTuple):
    """A model cut where its layers begin and end; keywords of ``fira_jax.layerwise``."""

    embed: Callable[[Params, Any], jax.Array]
    block: Callable[[Params, jax.Array], jax.Array]
    head_loss: Callable[[Params, jax.Array, Any], jax.Array]


def llama_parts(config: LlamaConfig, chunk_size: int = 4096) -> Parts:
    """Cuts a LLaMA into embedding, layer and loss.

    The loss is that of ``experiments.model.loss``, without all logits in memory.

    Example:
        >>> config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64,
        ...                      num_layers=2, num_heads=4, max_sequence_length=16)
        >>> tx = fira_jax.fira(1e-2, rank=8)
        >>> init, step = fira_jax.layerwise(tx, **llama_parts(config)._asdict())

    Args:
        config: The model. ``config.remat`` saves memory within a layer too.
        chunk_size: Columns of the vocabulary whose logits exist at once.

    Returns:
        Functions over the parameters as ``nnx.to_pure_dict`` gives them and tokens [B, L+1].
    """
    layer_def = nnx.graphdef(nnx.eval_shape(lambda: Layer(config, rngs=nnx.Rngs(0))))
    norm_def = nnx.graphdef(nnx.eval_shape(lambda: RMSNorm(config)))

    def embed(outer: Params, tokens: jax.Array) -> jax.Array:
        return jnp.take(outer["embedding"], tokens[:, :-1], axis=0).astype(config.dtype)

    def block(layer: Params, x_BxLxD: jax.Array) -> jax.Array:
        rope = rope_table(x_BxLxD.shape[1], config.head_dim, config.rope_theta, config.rope_scaling)
        return nnx.merge(layer_def, layer)(x_BxLxD, rope)

    def head_loss(outer: Params, x_BxLxD: jax.Array, tokens: jax.Array) -> jax.Array:
        x_BxLxD = nnx.merge(norm_def, outer["final_norm"])(x_BxLxD)
        head = outer["embedding"].T if config.tie_embeddings else outer["head"]
        return fira_jax.chunked_cross_entropy(x_BxLxD, head, tokens[:, 1:], chunk_size).mean()

    return Parts(embed, block, head_loss)


def answer_parts(config: LlamaConfig, chunk_size: int = 4096) -> Parts:
    """:func:`llama_parts` for batches as ``experiments.llama.answers`` takes them."""
    parts = llama_parts(config, chunk_size)
    norm_def = nnx.graphdef(nnx.eval_shape(lambda: RMSNorm(config)))

    def embed(outer: Params, batch: dict[str, jax.Array]) -> jax.Array:
        return parts.embed(outer, batch["tokens"])

    def head_loss(outer: Params, x_BxLxD: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
        x_BxAxD, targets_BxA = answers(x_BxLxD, batch)
        x_BxAxD = nnx.merge(norm_def, outer["final_norm"])(x_BxAxD)
        head = outer["embedding"].T if config.tie_embeddings else outer["head"]
        nats = fira_jax.chunked_cross_entropy(x_BxAxD, head, targets_BxA, chunk_size)
        return jnp.mean(nats * batch["weights"])

    return Parts(embed, parts.block, head_loss)


def make_layerwise(
    model_config: LlamaConfig,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    seed: int,
    accumulate: int = 1,
    clip_norm: float = 0.0,
    store: Callable[[Params], Params] = lambda params: params,
) -> tuple[Callable[[], TrainState], Any]:
    """What ``experiments.step`` makes for an ordinary run: the first state, and one update.

    ``store`` says in which form the weights are kept, such as :func:`in_8_bits`.
    """
    init, train_step = make_layerwise_update(
        llama_parts(model_config), optimizer, schedule, seed, accumulate, clip_norm
    )

    def init_state() -> TrainState:
        params = nnx.to_pure_dict(nnx.state(Llama(model_config, rngs=nnx.Rngs(seed))))
        weights = store(params)
        return TrainState(jnp.int32(0), weights, init(weights))

    return init_state, train_step


def make_layerwise_update(
    parts: Parts,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    seed: int,
    accumulate: int = 1,
    clip_norm: float = 0.0,
) -> tuple[Callable[[Params], Any], Any]:
    """The optimizer's first state from weights, and one update, jitted, its state donated."""
    init, step = fira_jax.layerwise(
        optimizer,
        **parts._asdict(),
        micro_batches=accumulate,
        clip_norm=clip_norm or None,
        seed=seed,
    )

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        params, opt_state, metrics = step(state.params, state.opt_state, batch)
        values = {
            "train_loss": metrics["loss"],
            "lr": jnp.asarray(schedule(state.step)),
            "grad_norm": metrics["grad_norm"],
        }
        return TrainState(state.step + 1, params, opt_state), values

    return init, jax.jit(train_step, donate_argnums=0)


def in_8_bits(params: Params) -> Params:
    """All weights but those of norms as ``fira_jax.precision.QuantizedWeight``."""

    def is_matrix(path: Any, _: Any) -> bool:
        return "norm" not in jax.tree_util.keystr(path)

    mask = jax.tree_util.tree_map_with_path(is_matrix, params)
    return fira_jax.precision.quantize_weights(params, mask=mask)

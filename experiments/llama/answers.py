"""The loss of answers alone: of no other token are logits computed."""

import jax
import jax.numpy as jnp
import optax

from experiments.llama.model import Llama

Batch = dict[str, jax.Array]
"""``tokens`` int32 [B, L+1]; ``places`` int32 [B, A], the positions whose next tokens are
predicted; where several texts share a row, ``segments`` int32 [B, L+1]; and for the loss
``weights`` float32 [B, A], how much each prediction counts, of mean 1 over the whole batch: so that
the mean over equal parts of a batch is the mean over the batch, however its answers are spread."""


def features(model: Llama, batch: Batch) -> jax.Array:
    """The residual stream after the last layer [B, L, D]."""
    segments = batch.get("segments")
    return model.hidden(batch["tokens"][:, :-1], None if segments is None else segments[:, :-1])


def answers(x_BxLxD: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """The residual stream where answers are predicted [B, A, D], and the answers [B, A]."""
    places_BxA = batch["places"]
    x_BxAxD = jnp.take_along_axis(x_BxLxD, places_BxA[..., None], axis=1)
    return x_BxAxD, jnp.take_along_axis(batch["tokens"], places_BxA + 1, axis=1)


def nats_of(model: Llama, x_BxLxD: jax.Array, batch: Batch) -> jax.Array:
    """Nats with which ``model`` predicts the tokens of answers, float32 [B, A].

    Args:
        model: The model.
        x_BxLxD: Its :func:`features` of the batch.
        batch: Rows and where their answers are.
    """
    x_BxAxD, targets_BxA = answers(x_BxLxD, batch)
    logits_BxAxV = model.unembed(x_BxAxD)
    return optax.softmax_cross_entropy_with_integer_labels(logits_BxAxV, targets_BxA)


def loss_of(model: Llama, x_BxLxD: jax.Array, batch: Batch) -> jax.Array:
    """Mean nats per token of the answers alone, a float32 scalar; takes what nats_of takes."""
    return jnp.mean(nats_of(model, x_BxLxD, batch) * batch["weights"])

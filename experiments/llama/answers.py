"""The loss of answers alone: of no other token are logits computed."""

import jax
import jax.numpy as jnp
import optax

from experiments.llama.model import Llama


def answer_nats(model: Llama, batch: dict[str, jax.Array]) -> jax.Array:
    """Nats with which ``model`` predicts the tokens of answers; of no other are logits computed.

    Args:
        model: The model.
        batch: ``tokens`` int32 [B, L+1]; ``places`` int32 [B, A], the positions whose next tokens
            are predicted; and, where several texts share a row, ``segments`` int32 [B, L+1].

    Returns:
        float32 [B, A].
    """
    segments = batch.get("segments")
    x_BxLxD = model.hidden(batch["tokens"][:, :-1], None if segments is None else segments[:, :-1])
    x_BxAxD, targets_BxA = answers(x_BxLxD, batch)
    logits_BxAxV = model.unembed(x_BxAxD)
    return optax.softmax_cross_entropy_with_integer_labels(logits_BxAxV, targets_BxA)


def answers(x_BxLxD: jax.Array, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The residual stream where answers are predicted [B, A, D], and the answers [B, A]."""
    places_BxA = batch["places"]
    x_BxAxD = jnp.take_along_axis(x_BxLxD, places_BxA[..., None], axis=1)
    return x_BxAxD, jnp.take_along_axis(batch["tokens"], places_BxA + 1, axis=1)


def answer_loss(model: Llama, batch: dict[str, jax.Array]) -> jax.Array:
    """Mean nats per token of the answers alone.

    Args:
        model: The model.
        batch: As for :func:`answer_nats`, and ``weights`` float32 [B, A], how much each prediction
            counts, of mean 1 over the whole batch: so that the mean over equal parts of a batch is
            the mean over the batch, however its answers are spread.

    Returns:
        A float32 scalar.
    """
    return jnp.mean(answer_nats(model, batch) * batch["weights"])

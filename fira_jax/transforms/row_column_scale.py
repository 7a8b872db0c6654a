"""One scale for each row and one for each column of a matrix."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fira_jax import checks
from fira_jax.norms import frobenius_norm, root
from fira_jax.transforms.limiter import limit_growth
from fira_jax.trees import Params, map_leaves


class ScaleRowsAndColumnsState(NamedTuple):
    """State of :func:`scale_rows_and_columns`.

    Attributes:
      inputs: :math:`s`, ``[*batch, m, 1]``.
      outputs: :math:`q`, ``[*batch, 1, n]``.
      previous: norm of the last update that was not zero, ``[*batch]``.
    """

    inputs: Any
    outputs: Any
    previous: Any


def scale_rows_and_columns(
    decay: jax.typing.ArrayLike, rounds: jax.typing.ArrayLike, gamma: jax.typing.ArrayLike | None
) -> optax.GradientTransformationExtraArgs:
    """Of each matrix ``[*batch, m, n]``."""
    decay = checks.decay("decay", decay)
    if gamma is not None:
        gamma = checks.number("gamma", gamma, least=1)

    def init(params: Params) -> ScaleRowsAndColumnsState:
        def zeros(*shape: Any) -> Any:
            def one(x: Any) -> jax.Array:
                *batch, m, n = x.shape
                sizes = {"m": m, "n": n, 1: 1}
                wide = jnp.promote_types(x.dtype, jnp.float32)
                return jnp.zeros((*batch, *(sizes[i] for i in shape)), wide)

            return map_leaves(one, params)

        return ScaleRowsAndColumnsState(zeros("m", 1), zeros(1, "n"), zeros())

    def update(
        updates: optax.Updates,
        state: ScaleRowsAndColumnsState,
        params: Params | None = None,
        **_: Any,
    ) -> tuple[optax.Updates, ScaleRowsAndColumnsState]:
        del params

        def step(grad: Any, inputs: Any, outputs: Any, previous: Any) -> tuple[Any, ...]:
            wide = grad.astype(inputs.dtype)
            largest = jnp.max(jnp.abs(wide), axis=(-2, -1), keepdims=True)
            # Scaled, or the fourth powers in the rounds leave the range of float32.
            squares = jnp.square(_divide(wide, largest))
            start = squares, jnp.ones_like(inputs), jnp.ones_like(outputs)
            _, s, q = jax.lax.fori_loop(0, rounds, _fit, start)
            s = s * jnp.square(largest)
            known = largest > 0  # a zero gradient says nothing about sizes
            inputs = jnp.where(known, decay * inputs + (1 - decay) * s, inputs)
            outputs = jnp.where(known, decay * outputs + (1 - decay) * q, outputs)
            scaled = _divide(_divide(wide, root(inputs)), root(outputs))
            if gamma is not None:
                shrink, previous = limit_growth(frobenius_norm(scaled), previous, gamma, 1e-8)
                scaled = shrink[..., None, None] * scaled
            return scaled.astype(grad.dtype), inputs, outputs, previous

        updates, *kept = map_leaves(step, updates, *state)
        return updates, ScaleRowsAndColumnsState(*kept)

    return optax.GradientTransformationExtraArgs(init, update)


def _fit(_: Any, found: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """One round towards ``s q^T`` nearest to ``squares``; compiled once, also outside a jit."""
    squares, _, q = found
    s = _divide(squares @ q.mT, jnp.sum(jnp.square(q), axis=-1, keepdims=True))
    return squares, s, _divide(s.mT @ squares, jnp.sum(jnp.square(s), axis=-2, keepdims=True))


def _divide(x: jax.Array, y: jax.Array) -> jax.Array:
    """``x / y``, zero where ``y`` is."""
    return jnp.where(y > 0, x / jnp.where(y > 0, y, 1), 0)

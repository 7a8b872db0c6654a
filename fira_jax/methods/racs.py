"""RACS: rows and columns of the gradient scaled by two vectors, and nothing else."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fira_jax.limiter import frobenius_norm, limit_growth
from fira_jax.matrices import on_matrices
from fira_jax.subspace import Params, map_leaves


def racs(
    learning_rate: optax.ScalarOrSchedule,
    scale: jax.typing.ArrayLike = 0.05,
    base_optimizer: optax.GradientTransformation | None = None,
    weight_decay: jax.typing.ArrayLike = 0.0,
    mask: Any = None,
    weight_dimension_numbers: Any = None,
    *,
    decay: jax.typing.ArrayLike = 0.9,
    rounds: jax.typing.ArrayLike = 5,
    gamma: jax.typing.ArrayLike | None = 1.01,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    r"""RACS: row and column scaled SGD.

    .. math::

        U = \alpha\, \mathrm{diag}(s)^{-1/2}\, G\, \mathrm{diag}(q)^{-1/2} / \ell

    where :math:`s q^\top` is the matrix of rank one nearest to :math:`G \circ G`, by a few rounds
    of :math:`s \leftarrow G^{\circ 2} q / \lVert q \rVert^2`,
    :math:`q \leftarrow G^{\circ 2 \top} s / \lVert s \rVert^2`, averaged over steps. The limiter
    :math:`\ell` lets the norm grow by a factor :math:`\gamma` a step at most. State:
    :math:`m + n + 1` elements for a matrix. Other parameters get Adam.

    Args:
      learning_rate: a scalar or a schedule; 0.02 in the published runs.
      scale: :math:`\alpha`. Matrices move at ``learning_rate * scale``.
      base_optimizer: replaces Adam for parameters that are no matrices; any Optax transformation
        without a learning rate.
      weight_decay: decoupled, as in ``optax.adamw``.
      mask: which parameters decay, as in ``optax.add_decayed_weights``.
      weight_dimension_numbers: which parameters are matrices and along which axes, see
        :class:`fira_jax.LowRank`.
      decay: of the averages of :math:`s` and :math:`q`.
      rounds: of the fixed-point iteration.
      gamma: the limiter's growth factor; None for no limiter.
      b1: Adam's decay of the first moment.
      b2: Adam's decay of the second moment.
      eps: Adam's :math:`\epsilon`.

    Raises:
      ValueError: at ``init``, naming the parameter, if the dimension numbers do not fit it.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> tx = fira_jax.racs(0.02)
      >>> fira_jax.describe(tx, {"w": jnp.ones((8, 16))}).rows[0].state_bytes  # 4 (m + n + 1)
      100

    References:
      Gong et al., `Towards Efficient Optimizer Design for LLM via Structured Fisher Approximation
      <https://arxiv.org/abs/2502.07752>`_, 2025. Unverified, since the text was not at hand: the
      averages start at zero and are not corrected for it, so the first steps are up to
      :math:`1 / (1 - \beta)` times too large; warm up.
    """
    return optax.chain(
        on_matrices(
            optax.chain(_scale_rows_and_columns(decay, rounds, gamma), optax.scale(scale)),
            base_optimizer or optax.scale_by_adam(b1, b2, eps),
            weight_dimension_numbers,
        ),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )


class RacsState(NamedTuple):
    """State of the scaling in :func:`racs`.

    Attributes:
      inputs: :math:`s`, ``[*batch, m, 1]``.
      outputs: :math:`q`, ``[*batch, 1, n]``.
      previous: norm of the last update that was not zero, ``[*batch]``.
    """

    inputs: Any
    outputs: Any
    previous: Any


def _scale_rows_and_columns(
    decay: jax.typing.ArrayLike, rounds: jax.typing.ArrayLike, gamma: jax.typing.ArrayLike | None
) -> optax.GradientTransformationExtraArgs:
    """Of each matrix ``[*batch, m, n]``."""

    def init(params: Params) -> RacsState:
        def zeros(*shape: Any) -> Any:
            def one(x: Any) -> jax.Array:
                *batch, m, n = x.shape
                sizes = {"m": m, "n": n, 1: 1}
                wide = jnp.promote_types(x.dtype, jnp.float32)
                return jnp.zeros((*batch, *(sizes[i] for i in shape)), wide)

            return map_leaves(one, params)

        return RacsState(zeros("m", 1), zeros(1, "n"), zeros())

    def update(
        updates: optax.Updates, state: RacsState, params: Params | None = None, **_: Any
    ) -> tuple[optax.Updates, RacsState]:
        del params

        def step(grad: Any, inputs: Any, outputs: Any, previous: Any) -> tuple[Any, ...]:
            wide = grad.astype(inputs.dtype)
            largest = jnp.max(jnp.abs(wide), axis=(-2, -1), keepdims=True)
            # Scaled, or the fourth powers in the rounds leave the range of float32.
            squares = jnp.square(_divide(wide, largest))

            def fit(_: Any, factors: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
                _, q = factors
                s = _divide(squares @ q.mT, jnp.sum(jnp.square(q), axis=-1, keepdims=True))
                return s, _divide(s.mT @ squares, jnp.sum(jnp.square(s), axis=-2, keepdims=True))

            ones = jnp.ones_like(inputs), jnp.ones_like(outputs)
            s, q = jax.lax.fori_loop(0, rounds, fit, ones)
            s = s * jnp.square(largest)
            known = largest > 0  # a zero gradient says nothing about sizes
            inputs = jnp.where(known, decay * inputs + (1 - decay) * s, inputs)
            outputs = jnp.where(known, decay * outputs + (1 - decay) * q, outputs)
            scaled = _divide(_divide(wide, jnp.sqrt(inputs)), jnp.sqrt(outputs))
            if gamma is not None:
                shrink, previous = limit_growth(frobenius_norm(scaled), previous, gamma, 1e-8)
                scaled = shrink[..., None, None] * scaled
            return scaled.astype(grad.dtype), inputs, outputs, previous

        updates, *kept = map_leaves(step, updates, *state)
        return updates, RacsState(*kept)

    return optax.GradientTransformationExtraArgs(init, update)


def _divide(x: jax.Array, y: jax.Array) -> jax.Array:
    """``x / y``, zero where ``y`` is."""
    return jnp.where(y > 0, x / jnp.where(y > 0, y, 1), 0)

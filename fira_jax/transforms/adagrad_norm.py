"""One step size for all parameters, from the norms of all gradients so far."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fira_jax.norms import squared_norm
from fira_jax.trees import Params


class ScaleByAdagradNormState(NamedTuple):
    """State of :func:`scale_by_adagrad_norm`.

    Attributes:
      sum_of_squares: squared norms of all gradients so far, float32 or wider, scalar.
    """

    sum_of_squares: jax.Array


def scale_by_adagrad_norm(
    initial_accumulator_value: jax.typing.ArrayLike = 0.0, eps: jax.typing.ArrayLike = 1e-7
) -> optax.GradientTransformationExtraArgs:
    r"""AdaGrad-Norm: one step size for the model, from the norms of all gradients so far.

    .. math::

        v \leftarrow v + \lVert G \rVert^2, \qquad U = G / \sqrt{v + \epsilon}

    A gradient whose square is not finite counts as zero.

    Args:
      initial_accumulator_value: where :math:`v` starts.
      eps: :math:`\epsilon`.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> tx = fira_jax.transforms.scale_by_adagrad_norm()
      >>> updates, _ = tx.update(jnp.array([3.0, 4.0]), tx.init(jnp.zeros(2)))
      >>> print(updates)
      [0.6 0.8]

    References:
      Ward, Wu and Bottou, `AdaGrad stepsizes <https://arxiv.org/abs/1806.01811>`_, 2018.
    """

    def init(params: Params) -> ScaleByAdagradNormState:
        wide = jnp.result_type(jnp.float32, *jax.tree.leaves(params))
        return ScaleByAdagradNormState(jnp.asarray(initial_accumulator_value, wide))

    def update(
        updates: optax.Updates,
        state: ScaleByAdagradNormState,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByAdagradNormState]:
        del params, extra_args
        norm = squared_norm(updates)
        usable = jnp.isfinite(norm)
        total = state.sum_of_squares + jnp.where(usable, norm, 0).astype(state.sum_of_squares.dtype)
        factor = jnp.where(total > 0, jax.lax.rsqrt(total + eps), 0)
        updates = jax.tree.map(lambda g: jnp.where(usable, factor * g, 0).astype(g.dtype), updates)
        return updates, ScaleByAdagradNormState(total)

    return optax.GradientTransformationExtraArgs(init, update)

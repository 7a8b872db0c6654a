"""AdAdaGrad: AdaGrad whose batches grow as its gradients become noise."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fira_jax.checks import require_choice
from fira_jax.norm_test import adapt_batch_size, squared_norm
from fira_jax.subspace import Params


class AdaGradNormState(NamedTuple):
    """State of :func:`scale_by_adagrad_norm`.

    Attributes:
      sum_of_squares: squared norms of all gradients so far, float32 or wider, scalar.
    """

    sum_of_squares: jax.Array


def adadagrad(
    learning_rate: optax.ScalarOrSchedule,
    initial_batch_size: int,
    maximum_batch_size: int,
    eta: jax.typing.ArrayLike = 0.1,
    weight_decay: jax.typing.ArrayLike = 0.0,
    mask: Any = None,
    *,
    granularity: Literal["entry", "model"] = "entry",
    initial_accumulator_value: jax.typing.ArrayLike = 0.0,
    eps: jax.typing.ArrayLike = 1e-7,
) -> optax.GradientTransformationExtraArgs:
    r"""AdAdaGrad and AdAdaGradNorm: an adaptive gradient method with adaptive batch sizes.

    .. math::

        V \leftarrow V + G^2, \qquad U = G / \sqrt{V + \epsilon}

    entry by entry, or with one sum for the whole model; and the norm test of
    :func:`fira_jax.adapt_batch_size`, which says how large the next batch should be. The test does
    not depend on what follows it: any optimizer can take AdaGrad's place in the chain. State:
    :math:`ab` elements for a matrix (none with ``"model"``), and one for the batch size.

    Args:
      learning_rate: a scalar or a schedule.
      initial_batch_size: examples in the first batch. Static.
      maximum_batch_size: the most examples in a batch. Static.
      eta: :math:`\eta` of the norm test.
      weight_decay: decoupled, as in ``optax.adamw``.
      mask: which parameters decay, as in ``optax.add_decayed_weights``.
      granularity: ``"entry"`` for AdAdaGrad, ``"model"`` for AdAdaGradNorm.
      initial_accumulator_value: where :math:`V` starts.
      eps: :math:`\epsilon`.

    Raises:
      TypeError: a batch size is not a static int.
      ValueError: an argument is out of range; at ``update``, ``gradient_variance`` is missing.

    Example:
      >>> import fira_jax, jax.numpy as jnp, optax
      >>> tx = fira_jax.adadagrad(0.1, initial_batch_size=8, maximum_batch_size=64)
      >>> params = {"w": jnp.ones((2, 3))}
      >>> state = tx.init(params)
      >>> _, state = tx.update(params, state, params, gradient_variance=3.0)
      >>> int(optax.tree.get(state, "batch_size"))  # 3 / (0.1**2 * 6)
      50

    References:
      Lau, Liu and Kolar, `AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods
      <https://arxiv.org/abs/2402.11215>`_, 2024. Unverified, since no card or text was at hand:
      the values of ``eta``, ``eps`` and the accumulator's start.
    """
    require_choice("granularity", granularity, ("entry", "model"))
    if granularity == "entry":
        scale = optax.scale_by_rss(initial_accumulator_value, eps)
    else:
        scale = scale_by_adagrad_norm(initial_accumulator_value, eps)
    return optax.chain(
        adapt_batch_size(initial_batch_size, maximum_batch_size, eta),
        scale,
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )


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
      >>> tx = fira_jax.scale_by_adagrad_norm()
      >>> updates, _ = tx.update(jnp.array([3.0, 4.0]), tx.init(jnp.zeros(2)))
      >>> print(updates)
      [0.6 0.8]

    References:
      Ward, Wu and Bottou, `AdaGrad stepsizes <https://arxiv.org/abs/1806.01811>`_, 2018.
    """

    def init(params: Params) -> AdaGradNormState:
        wide = jnp.result_type(jnp.float32, *jax.tree.leaves(params))
        return AdaGradNormState(jnp.asarray(initial_accumulator_value, wide))

    def update(
        updates: optax.Updates,
        state: AdaGradNormState,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AdaGradNormState]:
        del params, extra_args
        norm = squared_norm(updates)
        usable = jnp.isfinite(norm)
        total = state.sum_of_squares + jnp.where(usable, norm, 0).astype(state.sum_of_squares.dtype)
        factor = jnp.where(total > 0, jax.lax.rsqrt(total + eps), 0)
        updates = jax.tree.map(lambda g: jnp.where(usable, factor * g, 0).astype(g.dtype), updates)
        return updates, AdaGradNormState(total)

    return optax.GradientTransformationExtraArgs(init, update)

"""AdAdaGrad: AdaGrad whose batches grow as its gradients become noise."""

from __future__ import annotations

from typing import Any, Literal

import jax
import optax

from fira_jax.checks import require_choice
from fira_jax.dtypes import steady
from fira_jax.methods.shared import descent, shared_arguments
from fira_jax.transforms.adagrad_norm import scale_by_adagrad_norm
from fira_jax.transforms.norm_test import adapt_batch_size


@shared_arguments
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
    :func:`fira_jax.transforms.adapt_batch_size`, which says how large the next batch should be. The
    test does not depend on what follows it: any optimizer can take AdaGrad's place in the chain.
    State: :math:`ab` elements for a matrix (none with ``"model"``), and one for the batch size.

    Args:
      initial_batch_size: examples in the first batch. Static.
      maximum_batch_size: the most examples in a batch. Static.
      eta: :math:`\eta` of the norm test.
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
        scale = steady(optax.scale_by_rss(initial_accumulator_value, eps))
    else:
        scale = scale_by_adagrad_norm(initial_accumulator_value, eps)
    return optax.chain(
        adapt_batch_size(initial_batch_size, maximum_batch_size, eta),
        scale,
        *descent(learning_rate, weight_decay, mask),
    )

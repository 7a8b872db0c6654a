"""SWAN: the gradient standardized and whitened, and no state."""

from __future__ import annotations

from typing import Any

import jax
import optax

from fira_jax.methods.shared import descent, formerly, shared_arguments
from fira_jax.transforms.adam import scale_by_adam
from fira_jax.transforms.matrices import on_matrices
from fira_jax.transforms.normalize import multi_normalize, standardize, whiten


@formerly("base_optimizer", "elsewhere")
@shared_arguments
def swan(
    learning_rate: optax.ScalarOrSchedule,
    scale: jax.typing.ArrayLike = 0.05,
    elsewhere: optax.GradientTransformation | None = None,
    weight_decay: jax.typing.ArrayLike = 0.0,
    mask: Any = None,
    weight_dimension_numbers: Any = None,
    *,
    ns_steps: int = 10,
    step_size: jax.typing.ArrayLike = 0.8,
    standardized: bool = True,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    mu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""SWAN: SGD with whitening and normalization.

    What leads to each output unit is standardized over the inputs, then all directions of the
    matrix are given the same weight:

    .. math::

        \hat G_{:,j} = (G_{:,j} - \mu_j) / \sigma_j, \qquad
        U = \kappa \, \frac{\sqrt{mn}}{\lVert W \rVert_F} W, \quad
        W \approx (\hat G \hat G^\top)^{-1/2} \hat G

    by Newton–Schulz steps on the shorter side, so that entries have root mean square
    :math:`\kappa`. What is standardized away never moves: the mean over the inputs of what leads to
    an output unit stays what it was. State: 0 elements for a matrix. Other parameters get Adam at
    the full learning rate.

    Args:
      scale: :math:`\kappa`. Matrices move at ``learning_rate * scale``.
      weight_dimension_numbers: which parameters are matrices and along which axes, see
        :class:`fira_jax.LowRank`. Leave embeddings and the head to Adam:
        ``fira_jax.match_paths(("attn", "mlp"))``.
      ns_steps: number of Newton–Schulz steps. Static.
      step_size: their :math:`\beta`, see :func:`fira_jax.transforms.whiten`.
      standardized: whether the first of the two operators is applied; without it that mean moves
        too.

    Raises:
      ValueError: an argument is out of range or, at ``init``, does not fit a parameter.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> params = {"w": jnp.ones((8, 16)), "b": jnp.ones(16)}
      >>> [row.state_bytes for row in fira_jax.describe(fira_jax.swan(0.02), params).rows]
      [128, 0]

    References:
      Ma et al., `SWAN: SGD with Normalization and Whitening Enables Stateless LLM Training
      <https://arxiv.org/abs/2412.13148>`_, 2024. Unverified, since the paper's text was not at
      hand: the learning rate and ``scale`` (here those of SinkGD, whose update has the same size),
      ``ns_steps`` and ``step_size`` (as one port says the paper has them; another takes 6 and 0.5),
      and which parameters are left to Adam.
    """
    operators = [standardize("input")] if standardized else []
    normalize = multi_normalize(*operators, whiten(ns_steps, step_size))
    return optax.chain(
        on_matrices(
            optax.chain(normalize, optax.scale(scale)),
            elsewhere or scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype),
            weight_dimension_numbers,
        ),
        *descent(learning_rate, weight_decay, mask),
    )

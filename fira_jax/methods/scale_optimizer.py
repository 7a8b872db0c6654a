"""SCALE: column-normalized gradients, with momentum for the last layer only."""

from __future__ import annotations

from typing import Any

import jax
import optax

from fira_jax.dimension_numbers import mask_of, match_paths
from fira_jax.methods.shared import descent, formerly, shared_arguments
from fira_jax.transforms.adam import scale_by_adam
from fira_jax.transforms.matrices import on_matrices
from fira_jax.transforms.normalize import multi_normalize, unit_rms


@formerly("base_optimizer", "elsewhere")
@shared_arguments
def scale_optimizer(
    learning_rate: optax.ScalarOrSchedule,
    scale: jax.typing.ArrayLike = 1.0,
    elsewhere: optax.GradientTransformation | None = None,
    weight_decay: jax.typing.ArrayLike = 0.0,
    mask: Any = None,
    weight_dimension_numbers: Any = None,
    *,
    last_layer: str | None = r"(^|/)(lm_)?head(/|$)",
    momentum: jax.typing.ArrayLike = 0.9,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    mu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""SCALE: Stochastic Column-normalized Last-layer momentum.

    .. math::

        U_{:,j} = \kappa \sqrt m \, M_{:,j} / \lVert M_{:,j} \rVert

    with :math:`M = G \in \mathbb{R}^{m \times n}`, but in the last layer, where gradients are
    noisiest, :math:`M \leftarrow \mu M + G`. All matrices take part, embeddings
    included. State: 0 elements for a matrix, :math:`mn` for the last layer's. Vectors get Adam.

    Args:
      learning_rate: a scalar or a schedule; 1e-3 in the released code.
      scale: :math:`\kappa`. Matrices move at ``learning_rate * scale``.
      weight_dimension_numbers: which parameters are matrices and along which axes, see
        :class:`fira_jax.LowRank`. A column is what leads to one unit of the output axes.
      last_layer: regular expression that is found in the path of the last layer's matrix; None for
        momentum nowhere.
      momentum: :math:`\mu`.
      mu_dtype: dtype of the momentum and of Adam's first moments.

    Raises:
      ValueError: at ``init``, ``last_layer`` matches no matrix, or an argument does not fit a
        parameter.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> params = {"mlp": jnp.ones((8, 16)), "head": jnp.ones((8, 32))}
      >>> tx = fira_jax.scale_optimizer(1e-3)
      >>> [row.state_bytes for row in fira_jax.describe(tx, params).rows]
      [1024, 0]

    References:
      Glentis et al., `A Minimalist Optimizer Design for LLM Pretraining
      <https://arxiv.org/abs/2506.16659>`_, 2025. Norms are held above 1e-8 of the matrix's largest
      entry.
    """
    memory = optax.identity()
    if last_layer is not None:
        memory = optax.masked(
            optax.trace(momentum, accumulator_dtype=mu_dtype), mask_of(match_paths(last_layer))
        )
    return optax.chain(
        on_matrices(
            optax.chain(memory, multi_normalize(unit_rms("input")), optax.scale(scale)),
            elsewhere or scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype),
            weight_dimension_numbers,
        ),
        *descent(learning_rate, weight_decay, mask),
    )

"""SCALE: column-normalized gradients, with momentum for the last layer only."""

from __future__ import annotations

from typing import Any

import jax
import optax

from fira_jax.dimension_numbers import match_paths
from fira_jax.transforms.matrices import on_matrices
from fira_jax.transforms.normalize import multi_normalize, unit_rms
from fira_jax.trees import Params, is_leaf


def scale_optimizer(
    learning_rate: optax.ScalarOrSchedule,
    scale: jax.typing.ArrayLike = 1.0,
    base_optimizer: optax.GradientTransformation | None = None,
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
      base_optimizer: replaces Adam for parameters that are no matrices; any Optax transformation
        without a learning rate.
      weight_decay: decoupled, as in ``optax.adamw``.
      mask: which parameters decay, as in ``optax.add_decayed_weights``.
      weight_dimension_numbers: which parameters are matrices and along which axes, see
        :class:`fira_jax.LowRank`. A column is what leads to one unit of the output axes.
      last_layer: regular expression that is found in the path of the last layer's matrix; None for
        momentum nowhere.
      momentum: :math:`\mu`.
      b1: Adam's decay of the first moment.
      b2: Adam's decay of the second moment.
      eps: Adam's :math:`\epsilon`.
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
        memory = optax.masked(optax.trace(momentum, accumulator_dtype=mu_dtype), _found(last_layer))
    return optax.chain(
        on_matrices(
            optax.chain(memory, multi_normalize(unit_rms("input")), optax.scale(scale)),
            base_optimizer or optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype),
            weight_dimension_numbers,
        ),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def _found(pattern: str) -> Any:
    """A mask of the matrices whose path contains the pattern."""

    def mask(params: Params) -> Params:
        return jax.tree.map(
            lambda _, spec: spec is not None, params, match_paths(pattern)(params), is_leaf=is_leaf
        )

    return mask

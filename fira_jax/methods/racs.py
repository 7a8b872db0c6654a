"""RACS: rows and columns of the gradient scaled by two vectors, and nothing else."""

from __future__ import annotations

from typing import Any

import jax
import optax

from fira_jax.methods.shared import descent, formerly, shared_arguments
from fira_jax.transforms.adam import scale_by_adam
from fira_jax.transforms.matrices import on_matrices
from fira_jax.transforms.row_column_scale import scale_rows_and_columns


@formerly("base_optimizer", "elsewhere")
@shared_arguments
def racs(
    learning_rate: optax.ScalarOrSchedule,
    scale: jax.typing.ArrayLike = 0.05,
    elsewhere: optax.GradientTransformation | None = None,
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
      weight_dimension_numbers: which parameters are matrices and along which axes, see
        :class:`fira_jax.LowRank`.
      decay: of the averages of :math:`s` and :math:`q`.
      rounds: of the fixed-point iteration.

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
            optax.chain(scale_rows_and_columns(decay, rounds, gamma), optax.scale(scale)),
            elsewhere or scale_by_adam(b1, b2, eps),
            weight_dimension_numbers,
        ),
        *descent(learning_rate, weight_decay, mask),
    )

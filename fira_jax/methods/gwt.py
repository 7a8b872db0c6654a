"""GWT: Adam on a wavelet's approximation of the gradient, its denominators on the details."""

from __future__ import annotations

from typing import Any

import jax
import optax

from fira_jax.arguments import Rank, Side
from fira_jax.low_rank import LowRank
from fira_jax.methods.shared import descent, limiter, shared_arguments
from fira_jax.transforms.adam import scale_by_adam_in_subspace
from fira_jax.transforms.project import low_rank_project, project_back
from fira_jax.transforms.residual import residual_over_denominator


@shared_arguments
def gwt(
    learning_rate: optax.ScalarOrSchedule,
    rank: Rank = 0.25,
    update_proj_gap: int = 200,
    scale: jax.typing.ArrayLike = 0.25,
    base_optimizer: optax.GradientTransformation | None = None,
    weight_decay: jax.typing.ArrayLike = 0.0,
    mask: Any = None,
    weight_dimension_numbers: Any = None,
    *,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-6,
    gamma: jax.typing.ArrayLike | None = 1.01,
    side: Side = "input",
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Gradient wavelet transform: full-rank updates from the state of a coarse gradient.

    Along the input axis the gradient is split into the approximation coefficients :math:`R` of a
    Haar wavelet and the details. Adam runs on the former; the latter have no state and are divided
    by the same denominators :math:`D = \sqrt V + \epsilon`. Since details of all levels live inside
    the block whose mean is the coefficient above them, no wavelet has to be computed for that:

    .. math::

        U = c\,\alpha \left( P \frac{M}{D} + \frac{G - P R}{D} \right) / \ell, \qquad R = P^\top G

    with :math:`P` the normalized indicators of the blocks. The limiter :math:`\ell` watches the
    norm of :math:`M / D`. State: :math:`2br + 1` elements for a matrix ``[a, b]``.

    Args:
      rank: number of blocks, or as a float one over their length: :math:`2^{-\ell}` is the paper's
        level :math:`\ell`. Static.
      update_proj_gap: has no effect: this basis never changes. Here so that all methods take it.
      base_optimizer: not supported, since it would have to tell what it divides by.
      side: along which axis blocks are taken, see :class:`fira_jax.LowRank`. Neighbours along it
        have no natural order, so this is a choice.

    Raises:
      TypeError: ``rank`` is not a static number.
      ValueError: an argument is out of range or, at ``init``, does not fit a parameter.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> tx = fira_jax.gwt(1e-2)
      >>> fira_jax.describe(tx, {"w": jnp.ones((8, 16))}).rows[0].state_bytes  # 4 (2br + 1)
      260

    References:
      Wen et al., `Breaking Memory Limits: Gradient Wavelet Transform Enhances LLMs Training
      <https://arxiv.org/abs/2501.07237>`_, 2025. The released code applies the bias correction of
      the first moment to the details too, which makes them up to ten times too large in the first
      steps; so does this. A last block that is not whole has its own length's mean.
    """
    if base_optimizer is not None:
        raise ValueError(
            "gwt divides the details by Adam's denominators, so base_optimizer must be None, got "
            f"{base_optimizer!r}; see fira_jax.in_subspace for chains of your own"
        )
    low_rank = LowRank(
        rank,
        update_proj_gap,
        scale,
        basis="haar",
        side=side,
        weight_dimension_numbers=weight_dimension_numbers,
    )
    return optax.chain(
        low_rank_project(low_rank),
        scale_by_adam_in_subspace(low_rank, b1, b2, eps, mu_dtype=mu_dtype, nu_dtype=nu_dtype),
        residual_over_denominator(),
        limiter(low_rank, gamma, watch="subspace"),
        project_back(),
        *descent(learning_rate, weight_decay, mask),
    )

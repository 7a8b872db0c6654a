"""Alice: Adam in a subspace that also looks elsewhere, and the rest with its columns equalized."""

from __future__ import annotations

from typing import Any

import jax
import optax

from fira_jax.arguments import BasisLike, Rank, Side
from fira_jax.low_rank import LowRank
from fira_jax.methods.shared import adam_or, descent, limiter, shared_arguments
from fira_jax.transforms.equalize import equalize_residual
from fira_jax.transforms.project import low_rank_project, project_back


@shared_arguments
def alice(
    learning_rate: optax.ScalarOrSchedule,
    rank: Rank = 128,
    update_proj_gap: int = 200,
    scale: jax.typing.ArrayLike = 0.3,
    base_optimizer: optax.GradientTransformation | None = None,
    weight_decay: jax.typing.ArrayLike = 0.0,
    mask: Any = None,
    weight_dimension_numbers: Any = None,
    *,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.9,
    eps: jax.typing.ArrayLike = 1e-8,
    residual_scale: jax.typing.ArrayLike = 0.4,
    gamma: jax.typing.ArrayLike | None = 1.01,
    bias_correction: bool = False,
    basis: BasisLike = "switching",
    side: Side = "short",
    seed: jax.typing.ArrayLike = 0,
    basis_dtype: jax.typing.DTypeLike | None = None,
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Alice: adaptive low-dimensional subspace estimation.

    Three changes to GaLore: the subspace is tracked by a covariance kept inside it, at a refresh
    some of its directions are drawn at random from outside (:class:`fira_jax.basis.Switching`), and
    the rest of the gradient moves too, with its columns brought to one size
    (:func:`fira_jax.equalize_residual`) and its growth limited:

    .. math::

        U = \alpha \left( P N + \lambda \sqrt{a - r}\, (G - P R)\, \mathrm{diag}(p)^{-1/2} / \ell
        \right)

    State: :math:`ar + 2br + b + r^2 + 1` elements for a matrix with sides :math:`a \le b`; with
    ``basis=fira_jax.basis.Switching(decay=0.0)`` (Alice-0) without the :math:`r^2`. Parameters that
    are not projected get Adam at the full learning rate.

    Args:
      learning_rate: a scalar or a schedule; 0.02 in the published runs.
      b1: Adam's decay of the first moment, and that of the columns' sizes.
      residual_scale: :math:`\lambda`.
      basis: a :class:`fira_jax.basis.Switching` with another number of directions kept at a
        refresh than 40, or another memory of the covariance than 0.999.

    Raises:
      TypeError: ``rank`` or ``update_proj_gap`` is not a static number.
      ValueError: an argument is out of range or, at ``init``, does not fit a parameter.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> tx = fira_jax.alice(0.02, rank=4)
      >>> fira_jax.describe(tx, {"w": jnp.ones((8, 16))}).rows[0].state_bytes
      772

    References:
      Gong et al., `Towards Efficient Optimizer Design for LLM via Structured Fisher Approximation
      <https://arxiv.org/abs/2502.07752>`_, 2025. Printed without bias correction. Unverified:
      :math:`\epsilon`; and that parameters that are not projected share the betas.
    """
    low_rank = LowRank(
        rank,
        update_proj_gap,
        scale,
        basis=basis,
        side=side,
        weight_dimension_numbers=weight_dimension_numbers,
        seed=seed,
        basis_dtype=basis_dtype,
    )
    inner = adam_or(
        base_optimizer,
        low_rank,
        b1=b1,
        b2=b2,
        eps=eps,
        bias_correction="inside" if bias_correction else "none",
        mu_dtype=mu_dtype,
        nu_dtype=nu_dtype,
    )
    return optax.chain(
        low_rank_project(low_rank),
        inner,
        equalize_residual(low_rank, residual_scale, b1),
        limiter(low_rank, gamma),
        project_back(),
        *descent(learning_rate, weight_decay, mask),
    )

"""SUMO: momentum kept in a subspace and orthogonalized there, and the rest as it is."""

from __future__ import annotations

from typing import Any, Literal

import jax
import optax

from fira_jax.arguments import BasisLike, Moments, Rank, RefreshLike, Side
from fira_jax.low_rank import LowRank
from fira_jax.methods.shared import descent, limiter, shared_arguments
from fira_jax.transforms.adam import scale_by_adam
from fira_jax.transforms.in_subspace import in_subspace
from fira_jax.transforms.orthogonalization import orthogonalize
from fira_jax.transforms.project import low_rank_project, project_back
from fira_jax.transforms.residual import plain_residual


@shared_arguments
def sumo(
    learning_rate: optax.ScalarOrSchedule,
    rank: Rank = 128,
    update_proj_gap: int = 200,
    scale: jax.typing.ArrayLike = 1.0,
    base_optimizer: optax.GradientTransformation | None = None,
    weight_decay: jax.typing.ArrayLike = 0.0,
    mask: Any = None,
    weight_dimension_numbers: Any = None,
    *,
    momentum: jax.typing.ArrayLike = 0.95,
    gamma: jax.typing.ArrayLike | None = 1.1,
    residual_scale: jax.typing.ArrayLike | None = 1.0,
    factor: Literal["svd", "newton_schulz"] = "svd",
    size: Literal["rms", "muon", "none"] = "rms",
    elsewhere: optax.GradientTransformation | None = None,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    basis: BasisLike = "randomized",
    side: Side = "short",
    refresh: RefreshLike = "fixed",
    moments: Moments = "carry",
    seed: jax.typing.ArrayLike = 0,
    basis_dtype: jax.typing.DTypeLike | None = None,
    mu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""SUMO: subspace-aware moment orthogonalization, a low-rank step of Muon.

    .. math::

        M \leftarrow \mu T M + (1 - \mu) R, \qquad M = U_M \Sigma V_M^\top, \qquad
        U = \alpha \left( s\, P U_M V_M^\top / \ell + \lambda (G - P R) \right)

    with :math:`T = P_{new}^\top P_{old}` at a refresh, and the limiter :math:`\ell` on the first
    part alone. The factor is exact by default: a matrix of :math:`r` rows has small singular values
    on which Muon's iteration errs most. State: :math:`ar + br + 1` elements for a matrix with sides
    :math:`a \le b`, half of Adam's moments. Parameters that are not projected get Adam at the full
    learning rate.

    Args:
      base_optimizer: replaces the average of gradients in the subspace; any Optax transformation
        without a learning rate. What it makes of them is orthogonalized.
      momentum: :math:`\mu`.
      residual_scale: :math:`\lambda`; None for nothing outside the subspace.
      factor: ``"svd"`` or Muon's ``"newton_schulz"``, see
        :func:`fira_jax.transforms.orthogonalize`.
      size: :math:`s`, see :func:`fira_jax.transforms.orthogonalize`.

    Raises:
      TypeError: ``rank`` or ``update_proj_gap`` is not a static number.
      ValueError: an argument is out of range or, at ``init``, does not fit a parameter.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> tx = fira_jax.sumo(1e-3, rank=4)
      >>> fira_jax.describe(tx, {"w": jnp.ones((8, 16))}).rows[0].state_bytes  # 4 (ar + br + 1)
      388

    References:
      Refael et al., `SUMO: Subspace-Aware Moment-Orthogonalization for Accelerating
      Memory-Efficient LLM Training <https://arxiv.org/abs/2505.24749>`_, 2025. Unverified, since
      the paper's text was not at hand: ``momentum`` and ``scale`` (here Muon's and 1), that the
      residual is added as it is, and the constant 0.2 of ``size``. Whether gradients are averaged
      or summed makes no difference: the factor does not see their size.
    """
    low_rank = LowRank(
        rank,
        update_proj_gap,
        scale,
        basis=basis,
        side=side,
        weight_dimension_numbers=weight_dimension_numbers,
        seed=seed,
        moments=moments,
        refresh=refresh,
        basis_dtype=basis_dtype,
    )
    average = optax.ema(momentum, debias=False, accumulator_dtype=mu_dtype)
    adam = scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype)
    rest = optax.identity() if residual_scale is None else plain_residual("sgd", residual_scale)
    return optax.chain(
        low_rank_project(low_rank),
        in_subspace(low_rank, base_optimizer or average, elsewhere or adam),
        orthogonalize(factor, size=size),
        limiter(low_rank, gamma, watch="core"),
        rest,
        project_back(),
        *descent(learning_rate, weight_decay, mask),
    )

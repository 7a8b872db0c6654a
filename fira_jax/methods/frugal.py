"""FRUGAL: Adam in a subspace that changes, signSGD on all the rest."""

from __future__ import annotations

from typing import Any, Literal

import jax
import optax

from fira_jax.arguments import BasisLike, Moments, Rank, Side
from fira_jax.checks import require_choice
from fira_jax.low_rank import LowRank
from fira_jax.methods.shared import adam_or, descent, shared_arguments
from fira_jax.transforms.project import low_rank_project, project_back
from fira_jax.transforms.residual import plain_residual


@shared_arguments
def frugal(
    learning_rate: optax.ScalarOrSchedule,
    rank: Rank = 0.25,
    update_proj_gap: int = 200,
    scale: jax.typing.ArrayLike = 1.0,
    base_optimizer: optax.GradientTransformation | None = None,
    weight_decay: jax.typing.ArrayLike = 0.0,
    mask: Any = None,
    weight_dimension_numbers: Any = None,
    *,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    rule: Literal["sign", "sgd", "none"] = "sign",
    rule_scale: jax.typing.ArrayLike = 1.0,
    basis: BasisLike = "columns",
    side: Side = "short",
    moments: Moments = "reset",
    seed: jax.typing.ArrayLike = 0,
    basis_dtype: jax.typing.DTypeLike | None = None,
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""FRUGAL: full-rank updates by splitting the gradient between two optimizers.

    .. math::

        U = \alpha \left( P N + \lambda\, \mathrm{sign}(G - P P^\top G) \right), \qquad
        N = \mathrm{Adam}(P^\top G)

    At a refresh the moments start anew. What the subspace is made of is the choice of ``basis``:

    - ``"columns"``: random rows or columns of the weight; state :math:`2br + r` for a matrix with
      sides :math:`a \le b`.
    - ``"randk"``: random entries; :math:`2br + r + 1`.
    - ``"svd"``, ``"randomized"`` or ``"orthonormal"`` (random); :math:`2br + ar`.
    - Whole layers ("blockwise"): ``"columns"`` along the axis that stacks them,
      ``weight_dimension_numbers=MuonDimensionNumbers(0, (1, 2))`` for layers ``[L, m, n]``;
      :math:`2rmn + r`. Layers that are parameters of their own cannot take turns, since shapes of
      the state do not change.

    Args:
      rank: dimension of the subspace, or as a float its share (the paper's density). Static.
      weight_dimension_numbers: which parameters are projected and along which axes, see
        :class:`fira_jax.LowRank`. The output head bears signSGD badly.
      rule: what is done with the rest: its ``"sign"``, ``"sgd"`` or ``"none"``.
      rule_scale: :math:`\lambda`; the authors fine-tune with 0.1.
      basis: see above and :class:`fira_jax.LowRank`.

    Raises:
      TypeError: ``rank`` or ``update_proj_gap`` is not a static number.
      ValueError: an argument is out of range or, at ``init``, does not fit a parameter.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> tx = fira_jax.frugal(1e-3, rank=0.25, basis="randk")
      >>> fira_jax.describe(tx, {"w": jnp.ones((8, 16))}).rows[0].state_bytes  # 4 (2br + r + 1)
      268

    References:
      Zmushko et al., `FRUGAL: Memory-Efficient Optimization by Reducing State Overhead for Scalable
      Training <https://arxiv.org/abs/2411.07837>`_, 2024. Deviations from the released code: its
      blocks are drawn at random only, ``"randk"`` draws as many entries from each column, and
      parameters that are not projected keep their moments. Its Lion is
      ``base_optimizer=optax.scale_by_lion(0.9, 0.99), moments="keep"``.
    """
    require_choice("rule", rule, ("sign", "sgd", "none"))
    low_rank = LowRank(
        rank,
        update_proj_gap,
        scale,
        basis=basis,
        side=side,
        weight_dimension_numbers=weight_dimension_numbers,
        seed=seed,
        moments=moments,
        basis_dtype=basis_dtype,
    )
    inner = adam_or(
        base_optimizer,
        low_rank,
        b1=b1,
        b2=b2,
        eps=eps,
        bias_correction="inside",
        mu_dtype=mu_dtype,
        nu_dtype=nu_dtype,
    )
    return optax.chain(
        low_rank_project(low_rank),
        inner,
        optax.identity() if rule == "none" else plain_residual(rule, rule_scale),
        project_back(),
        *descent(learning_rate, weight_decay, mask),
    )

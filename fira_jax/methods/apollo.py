"""APOLLO: the gradient itself moves, scaled as Adam scales a random sketch of it."""

from __future__ import annotations

from typing import Any, Literal

import jax
import optax

from fira_jax.basis import Basis
from fira_jax.low_rank import LowRank
from fira_jax.transforms.adam import scale_by_adam_in_subspace
from fira_jax.transforms.in_subspace import in_subspace
from fira_jax.transforms.limiter import norm_growth_limit
from fira_jax.transforms.project import low_rank_project, project_back
from fira_jax.transforms.residual import replace_by_scaled_gradient


def apollo(
    learning_rate: optax.ScalarOrSchedule,
    rank: int = 128,
    update_proj_gap: int = 200,
    scale: jax.typing.ArrayLike = 1.0,
    base_optimizer: optax.GradientTransformation | None = None,
    weight_decay: jax.typing.ArrayLike = 0.0,
    mask: Any = None,
    weight_dimension_numbers: Any = None,
    *,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-6,
    gamma: jax.typing.ArrayLike | None = 1.01,
    granularity: Literal["column", "matrix"] = "column",
    basis: str | Basis = "random",
    side: Literal["short", "long"] = "short",
    seed: jax.typing.ArrayLike = 0,
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""APOLLO: Adam's scaling, estimated in a random subspace, applied to the raw gradient.

    .. math::

        U = c \sqrt{\alpha}\, \phi \circ G / \ell, \qquad
        \phi_j = \lVert N_{:,j} \rVert / \lVert R_{:,j} \rVert, \qquad R = P^\top G

    No factorization and no product back to full size; the basis is regenerated from the seed and
    never stored. State: :math:`2br + 1` elements for a matrix with sides :math:`a \le b`.

    Args:
      learning_rate: a scalar or a schedule.
      rank: dimension of the sketch. Static.
      update_proj_gap: steps between two bases. Static.
      scale: :math:`\alpha`; its root multiplies the update, as in the released code.
      base_optimizer: replaces Adam; any Optax transformation without a learning rate.
      weight_decay: decoupled, as in ``optax.adamw``.
      mask: which parameters decay, as in ``optax.add_decayed_weights``.
      weight_dimension_numbers: which parameters are projected, see :class:`fira_jax.LowRank`.
      b1: Adam's decay of the first moment.
      b2: Adam's decay of the second moment.
      eps: Adam's :math:`\epsilon`.
      gamma: the limiter's growth factor; None for no limiter.
      granularity: one scale for each ``"column"`` ("channel" in the paper) or for the ``"matrix"``.
      basis: see :class:`fira_jax.LowRank`; ``"svd"`` is the paper's variant with SVD.
      side: see :class:`fira_jax.LowRank`.
      seed: see :class:`fira_jax.LowRank`.
      mu_dtype: dtype of the first moments.
      nu_dtype: dtype of the second moments.

    Raises:
      TypeError: ``rank`` or ``update_proj_gap`` is not a static int.
      ValueError: an argument is out of range or, at ``init``, does not fit a parameter.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> tx = fira_jax.apollo(learning_rate=1e-2, rank=4)
      >>> state = tx.init({"w": jnp.ones((8, 16))})

    References:
      Zhu et al., `APOLLO: SGD-like Memory, AdamW-level Performance
      <https://arxiv.org/abs/2412.05270>`_, 2024. The released code stores the basis, draws one for
      each parameter and clips rank at nothing; here matrices of one size share a basis and the
      rank is at most the shorter side.
    """
    low_rank = LowRank(
        rank,
        update_proj_gap,
        scale,
        basis=basis,
        side=side,
        weight_dimension_numbers=weight_dimension_numbers,
        seed=seed,
    )
    if base_optimizer is None:
        inner = scale_by_adam_in_subspace(
            low_rank, b1, b2, eps, mu_dtype=mu_dtype, nu_dtype=nu_dtype
        )
    else:
        inner = in_subspace(low_rank, base_optimizer)
    return optax.chain(
        low_rank_project(low_rank),
        inner,
        replace_by_scaled_gradient(scale, granularity=granularity),
        optax.identity() if gamma is None else norm_growth_limit(low_rank, gamma),
        project_back(),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def apollo_mini(
    learning_rate: optax.ScalarOrSchedule,
    rank: int = 1,
    update_proj_gap: int = 200,
    scale: jax.typing.ArrayLike = 128.0,
    base_optimizer: optax.GradientTransformation | None = None,
    weight_decay: jax.typing.ArrayLike = 0.0,
    mask: Any = None,
    weight_dimension_numbers: Any = None,
    *,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-6,
    gamma: jax.typing.ArrayLike | None = 1.01,
    granularity: Literal["column", "matrix"] = "matrix",
    basis: str | Basis = "random",
    side: Literal["short", "long"] = "short",
    seed: jax.typing.ArrayLike = 0,
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""APOLLO-Mini: a sketch of rank 1 and one scale for the whole matrix.

    State: :math:`2b + 1` elements for a matrix whose longer side is :math:`b`. The underestimate of
    so small a sketch is compensated by :math:`\sqrt{128}`.

    Args:
      learning_rate: a scalar or a schedule.
      rank: dimension of the sketch. Static.
      update_proj_gap: steps between two bases. Static.
      scale: :math:`\alpha`; its root multiplies the update.
      base_optimizer: see :func:`fira_jax.apollo`, as for all that follow.
      weight_decay: decoupled.
      mask: which parameters decay.
      weight_dimension_numbers: which parameters are projected.
      b1: Adam's decay of the first moment.
      b2: Adam's decay of the second moment.
      eps: Adam's :math:`\epsilon`.
      gamma: the limiter's growth factor.
      granularity: one scale for the ``"matrix"`` or for each ``"column"``.
      basis: kind of basis.
      side: which side is compressed.
      seed: seeds the basis.
      mu_dtype: dtype of the first moments.
      nu_dtype: dtype of the second moments.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> params = {"w": jnp.ones((8, 16))}
      >>> fira_jax.describe(fira_jax.apollo_mini(1e-2), params).rows[0].state_bytes
      132

    References:
      Zhu et al., `APOLLO <https://arxiv.org/abs/2412.05270>`_, 2024, section 4.2.
    """
    return apollo(
        learning_rate,
        rank,
        update_proj_gap,
        scale,
        base_optimizer,
        weight_decay,
        mask,
        weight_dimension_numbers,
        b1=b1,
        b2=b2,
        eps=eps,
        gamma=gamma,
        granularity=granularity,
        basis=basis,
        side=side,
        seed=seed,
        mu_dtype=mu_dtype,
        nu_dtype=nu_dtype,
    )

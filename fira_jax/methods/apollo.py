"""APOLLO: the gradient itself moves, scaled as Adam scales a random sketch of it."""

from __future__ import annotations

from typing import Any

import jax
import optax

from fira_jax.arguments import BasisLike, Granularity, Rank, Side
from fira_jax.low_rank import LowRank
from fira_jax.methods.shared import adam_or, descent, limiter, shared_arguments
from fira_jax.transforms.project import low_rank_project, project_back
from fira_jax.transforms.residual import replace_by_scaled_gradient


@shared_arguments
def apollo(
    learning_rate: optax.ScalarOrSchedule,
    rank: Rank = 128,
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
    granularity: Granularity = "column",
    basis: BasisLike = "random",
    side: Side = "short",
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
      rank: dimension of the sketch. Static.
      update_proj_gap: steps between two bases. Static.
      scale: :math:`\alpha`; its root multiplies the update, as in the released code.
      granularity: one scale for each ``"column"`` ("channel" in the paper) or for the ``"matrix"``.
      basis: see :class:`fira_jax.LowRank`; ``"svd"`` is the paper's variant with SVD.

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
    inner = adam_or(
        base_optimizer, low_rank, b1=b1, b2=b2, eps=eps, mu_dtype=mu_dtype, nu_dtype=nu_dtype
    )
    return optax.chain(
        low_rank_project(low_rank),
        inner,
        replace_by_scaled_gradient(scale, granularity=granularity),
        limiter(low_rank, gamma),
        project_back(),
        *descent(learning_rate, weight_decay, mask),
    )


@shared_arguments
def apollo_mini(
    learning_rate: optax.ScalarOrSchedule,
    rank: Rank = 1,
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
    granularity: Granularity = "matrix",
    basis: BasisLike = "random",
    side: Side = "short",
    seed: jax.typing.ArrayLike = 0,
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""APOLLO-Mini: a sketch of rank 1 and one scale for the whole matrix.

    State: :math:`2b + 1` elements for a matrix whose longer side is :math:`b`. The underestimate of
    so small a sketch is compensated by :math:`\sqrt{128}`.

    Args:
      rank: dimension of the sketch. Static.
      update_proj_gap: steps between two bases. Static.
      scale: :math:`\alpha`; its root multiplies the update.
      granularity: one scale for the ``"matrix"`` or for each ``"column"``.

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

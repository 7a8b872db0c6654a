"""DCT-AdamW: Adam on the cosine vectors that carry most of the gradient, chosen at every step."""

from __future__ import annotations

from typing import Any

import jax
import optax

from fira_jax.arguments import BasisLike, Moments, Rank, Side
from fira_jax.low_rank import LowRank
from fira_jax.methods.shared import adam_or, descent, shared_arguments
from fira_jax.transforms.error_feedback import low_rank_project_with_feedback
from fira_jax.transforms.project import low_rank_project, project_back


@shared_arguments
def dct_adamw(
    learning_rate: optax.ScalarOrSchedule,
    rank: Rank = 128,
    update_proj_gap: int = 1,
    scale: jax.typing.ArrayLike = 1.0,
    base_optimizer: optax.GradientTransformation | None = None,
    weight_decay: jax.typing.ArrayLike = 0.0,
    mask: Any = None,
    weight_dimension_numbers: Any = None,
    *,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    error_feedback: bool = False,
    basis: BasisLike = "dct",
    side: Side = "short",
    moments: Moments = "carry",
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""DCT-AdamW: a subspace without a factorization, cheap enough to be chosen at every step.

    .. math::

        U = \alpha P N, \qquad N = \mathrm{Adam}(P^\top (G + E)), \qquad
        E \leftarrow G + E - P P^\top (G + E)

    :math:`P` are :math:`r` columns of the cosine transform, of which only the indices are stored;
    moments follow the index they belong to, and a new one starts at zero. State: :math:`r + 2br`
    elements for a matrix with sides :math:`a \le b`, and :math:`ab` with error feedback. Parameters
    that are not projected get Adam.

    Args:
      update_proj_gap: steps between refreshes of the indices. Static.
      weight_dimension_numbers: which parameters are projected and along which axes, see
        :class:`fira_jax.LowRank`. The released code leaves those with a side of 32,000 to Adam.
      error_feedback: whether :math:`E` is kept (else it is zero). The authors keep it in 8 bits,
        without which it costs what the subspace saves: see
        :func:`fira_jax.precision.quantize_state`.
      basis: ``fira_jax.basis.Dct(score="l1")`` chooses as the released code does.

    Raises:
      TypeError: ``rank`` or ``update_proj_gap`` is not a static number.
      ValueError: an argument is out of range or, at ``init``, does not fit a parameter.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> tx = fira_jax.dct_adamw(1e-3, rank=4)
      >>> fira_jax.describe(tx, {"w": jnp.ones((8, 16))}).rows[0].state_bytes  # 4 (r + 2br)
      528

    References:
      Modoranu et al., `SVD-Free Low-Rank Adaptive Gradient Optimization for Large Language Models
      <https://arxiv.org/abs/2505.17967>`_, 2025. Deviations from the released code: vectors are
      chosen by energy and kept in ascending order, moments are carried by default, and the
      first step counts as 0 for the gap.
    """
    low_rank = LowRank(
        rank,
        update_proj_gap,
        scale,
        basis=basis,
        side=side,
        weight_dimension_numbers=weight_dimension_numbers,
        moments=moments,
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
        low_rank_project_with_feedback(low_rank) if error_feedback else low_rank_project(low_rank),
        inner,
        project_back(),
        *descent(learning_rate, weight_decay, mask),
    )

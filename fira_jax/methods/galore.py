"""GaLore: Adam in the gradient's leading subspace, and nothing outside it."""

from __future__ import annotations

from typing import Any

import jax
import optax

from fira_jax.arguments import BasisLike, Moments, Rank, RefreshLike, Side
from fira_jax.low_rank import LowRank
from fira_jax.methods.shared import adam_or, descent, shared_arguments
from fira_jax.transforms.project import low_rank_project, project_back


@shared_arguments
def galore(
    learning_rate: optax.ScalarOrSchedule,
    rank: Rank = 128,
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
    bias_correction: bool = True,
    basis: BasisLike = "randomized",
    side: Side = "short",
    refresh: RefreshLike = "fixed",
    moments: Moments = "keep",
    seed: jax.typing.ArrayLike = 0,
    basis_dtype: jax.typing.DTypeLike | None = None,
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""GaLore: memory-efficient training by gradient low-rank projection.

    .. math::

        U = c\, \alpha P N, \qquad N = \mathrm{Adam}(P^\top G)

    State: :math:`ar + 2br` elements for a matrix with sides :math:`a \le b`. Parameters that are
    not projected get Adam at the full learning rate.

    Args:
      base_optimizer: replaces Adam; any Optax transformation without a learning rate. The authors'
        Adafactor is ``optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))``,
        with a state of :math:`ar + r + b`.
      basis: see :class:`fira_jax.LowRank`; the authors use ``"svd"``.
      side: see :class:`fira_jax.LowRank`. ``"long"`` with ``basis="svd"``, ``scale=1.0`` and
        ``base_optimizer=optax.scale_by_adam()`` is ``optax.contrib.galore``.

    Raises:
      TypeError: ``rank`` or ``update_proj_gap`` is not a static int.
      ValueError: an argument is out of range or, at ``init``, does not fit a parameter.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> tx = fira_jax.galore(learning_rate=1e-2, rank=4, update_proj_gap=200, scale=0.25)
      >>> state = tx.init({"w": jnp.ones((8, 16))})

    References:
      Zhao et al., `GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection
      <https://arxiv.org/abs/2403.03507>`_, 2024. Deviations from the released code: the default
      basis, canonical signs and weight decay's order.
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
    inner = adam_or(
        base_optimizer,
        low_rank,
        b1=b1,
        b2=b2,
        eps=eps,
        bias_correction="outside" if bias_correction else "none",
        mu_dtype=mu_dtype,
        nu_dtype=nu_dtype,
    )
    return optax.chain(
        low_rank_project(low_rank),
        inner,
        project_back(),
        *descent(learning_rate, weight_decay, mask),
    )

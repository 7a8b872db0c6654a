"""GradNormLoRP: Adam on an r x r core of each normalized weight's direction."""

from __future__ import annotations

from typing import Any

import jax
import optax

from fira_jax.arguments import BasisLike, Rank, Side
from fira_jax.low_rank import LowRank
from fira_jax.methods.shared import adam_or, descent, shared_arguments
from fira_jax.transforms.adam import scale_by_adam
from fira_jax.transforms.cores import on_cores
from fira_jax.transforms.project import low_rank_project, project_back
from fira_jax.transforms.weight_norm import add_updates_of, weight_normalized


@shared_arguments
def gradnormlorp(
    learning_rate: optax.ScalarOrSchedule,
    rank: Rank = 128,
    update_proj_gap: int = 250,
    scale: jax.typing.ArrayLike = 1.0,
    base_optimizer: optax.GradientTransformation | None = None,
    weight_decay: jax.typing.ArrayLike = 0.0,
    mask: Any = None,
    weight_dimension_numbers: Any = None,
    *,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-6,
    basis: BasisLike = "randomized",
    side: Side = "short",
    seed: jax.typing.ArrayLike = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""GradNormLoRP: normalized weights, the gradient of their direction projected on both sides.

    .. math::

        D_V = \alpha A N B^\top, \qquad N = \mathrm{Adam}(A^\top \nabla_V B)

    with :math:`A`, :math:`B` the leading singular vectors of :math:`\nabla_V` at a refresh;
    direction and magnitude of the weights move as :func:`fira_jax.transforms.weight_normalized`
    says, the latter by Adam. State: :math:`ar + br + 2r^2 + 2n` elements for a matrix with sides
    :math:`a \le b` and :math:`n` outputs. Parameters that are not projected get Adam.

    Args:
      rank: of both projections. Static.
      update_proj_gap: steps between refreshes of both bases. Static.
      scale: :math:`\alpha`.
      base_optimizer: replaces Adam on the cores and on parameters that are not projected (not on
        magnitudes); any Optax transformation without a learning rate.
      side: which side is projected first, see :class:`fira_jax.LowRank`.

    Raises:
      TypeError: ``rank`` or ``update_proj_gap`` is not a static number.
      ValueError: an argument is out of range or, at ``init``, does not fit a parameter.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> tx = fira_jax.gradnormlorp(1e-2, rank=2)
      >>> fira_jax.describe(tx, {"w": jnp.ones((8, 16))}).rows[0].state_bytes
      352

    References:
      Huang et al., `Gradient Weight-normalized Low-rank Projection for Efficient LLM Training
      <https://arxiv.org/abs/2412.19616>`_, 2024. Our reading of the paper, unverified (its axis of
      normalization is taken to be the input's): the released code projects one side, resets the
      magnitudes at every step and so amounts to GaLore with more state. Entries of a core below 512
      units of rounding of its largest count as zero, which neither says: at a refresh they are
      nothing but rounding, and Adam's first step would be as long for them as for any.
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
    direction = optax.chain(
        low_rank_project(low_rank),
        on_cores(low_rank, lambda cores: adam_or(base_optimizer, cores, b1=b1, b2=b2, eps=eps)),
        project_back(),
    )
    return optax.chain(
        weight_normalized(low_rank, learning_rate, direction, scale_by_adam(b1, b2, eps)),
        add_updates_of(optax.chain(*descent(learning_rate, weight_decay, mask))),
    )

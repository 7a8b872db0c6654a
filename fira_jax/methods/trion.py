"""Trion: the momentum's part in a few cosine vectors, orthogonalized."""

from __future__ import annotations

from typing import Any

import jax
import optax

from fira_jax.arguments import BasisLike, Rank, Side
from fira_jax.dtypes import steady
from fira_jax.low_rank import LowRank
from fira_jax.methods.shared import descent, formerly, shared_arguments
from fira_jax.transforms.adam import scale_by_adam
from fira_jax.transforms.error_feedback import low_rank_project_with_feedback
from fira_jax.transforms.orthogonalization import orthogonalize
from fira_jax.transforms.project import project_back


@formerly("base_optimizer", "elsewhere")
@shared_arguments
def trion(
    learning_rate: optax.ScalarOrSchedule,
    rank: Rank = 128,
    update_proj_gap: int = 1,
    scale: jax.typing.ArrayLike = 1.0,
    elsewhere: optax.GradientTransformation | None = None,
    weight_decay: jax.typing.ArrayLike = 0.0,
    mask: Any = None,
    weight_dimension_numbers: Any = None,
    *,
    momentum: jax.typing.ArrayLike = 0.95,
    ns_steps: int = 5,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    basis: BasisLike = "dct",
    side: Side = "short",
) -> optax.GradientTransformationExtraArgs:
    r"""Trion: a low-rank step of Muon, chosen without a factorization.

    .. math::

        B = G + M, \qquad R = P^\top B, \qquad M \leftarrow B - (1 - \mu) P R, \qquad
        U = \alpha \sqrt{\max(1, n / m)}\; P\, \mathrm{orth}(R)

    for a weight from :math:`m` inputs to :math:`n` outputs, with :math:`\mathrm{orth}` a few rounds
    of a quintic Newton-Schulz iteration, that brings singular values to about one. State:
    :math:`ab + r` elements for a matrix: as much as Muon, not the class of the other methods; what
    is small is the matrix to orthogonalize. Parameters that are not projected get Adam.

    Args:
      learning_rate: a scalar or a schedule; 0.01 to 0.02 in the published runs.
      update_proj_gap: steps between refreshes of the indices. Static.
      momentum: :math:`\mu`.
      ns_steps: rounds of the Newton-Schulz iteration. Static.
      basis: ``fira_jax.basis.Dct(score="l1")`` chooses as the released code does.

    Raises:
      TypeError: ``rank`` or ``update_proj_gap`` is not a static number.
      ValueError: an argument is out of range or, at ``init``, does not fit a parameter.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> tx = fira_jax.trion(0.02, rank=4)
      >>> fira_jax.describe(tx, {"w": jnp.ones((8, 16))}).rows[0].state_bytes  # 4 (ab + r)
      528

    References:
      Modoranu et al., `FFT-based Dynamic Subspace Selection for Low-Rank Adaptive Optimization
      <https://arxiv.org/abs/2505.17967>`_, 2025. Vectors are chosen by energy, where the released
      code sums magnitudes.
    """
    low_rank = LowRank(
        rank,
        update_proj_gap,
        scale,
        basis=basis,
        side=side,
        weight_dimension_numbers=weight_dimension_numbers,
    )
    rest = elsewhere or scale_by_adam(b1, b2, eps)
    return optax.chain(
        low_rank_project_with_feedback(low_rank, momentum),
        orthogonalize(ns_steps=ns_steps),
        project_back(),
        optax.masked(steady(rest), low_rank.elsewhere),
        *descent(learning_rate, weight_decay, mask),
    )

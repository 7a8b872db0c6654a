"""AdaRankGrad: Adam in a subspace of just the rank that the gradient needs."""

from __future__ import annotations

from typing import Any

import jax
import optax

from fira_jax.arguments import BasisLike, Carry, Moments, Rank, RefreshLike, Side
from fira_jax.basis import Adaptive
from fira_jax.low_rank import LowRank
from fira_jax.methods.shared import adam_or, descent, shared_arguments
from fira_jax.refresh import NormDecay
from fira_jax.transforms.project import low_rank_project, project_back


@shared_arguments
def adarankgrad(
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
    eps: jax.typing.ArrayLike = 1e-8,
    basis: BasisLike = Adaptive(energy=0.96),  # noqa: B008  # frozen
    side: Side = "short",
    refresh: RefreshLike = NormDecay(),  # noqa: B008  # frozen
    moments: Moments = "carry",
    carry: Carry = "raw",
    seed: jax.typing.ArrayLike = 0,
    basis_dtype: jax.typing.DTypeLike | None = None,
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AdaRankGrad: gradients lose rank as training goes on, and the state with them.

    .. math::

        U = \alpha P N, \qquad N = \mathrm{Adam}(P^\top G)

    At a refresh :math:`P` gets the fewest vectors that hold a given share of the gradient's energy
    (:class:`fira_jax.basis.Adaptive`), and the moments turn into it. A refresh comes when the
    projected gradient has become small (:class:`fira_jax.refresh.NormDecay`). State:
    :math:`ar + 2br + 3` elements for a matrix with sides :math:`a \le b`, with :math:`r` the
    largest rank: inside a compiled step the vectors that are not in use are zero. Between two steps
    the state can be made as small as the ranks are:

    .. code-block:: python

        ranks = fira_jax.active_ranks(tx, state, params)
        tx = fira_jax.adarankgrad(learning_rate, rank=ranks)
        state = fira_jax.resize_state(tx, state, params)

    Args:
      rank: largest dimension of the subspace, one for all or a dict from paths. Static.
      update_proj_gap: steps after which a basis is replaced at the latest. Static.
      basis: how many vectors there are, and where they come from.
      moments: ``"carry"`` turns them into the new basis, ``"keep"`` leaves them.

    Raises:
      TypeError: ``rank`` or ``update_proj_gap`` is not a static int.
      ValueError: an argument is out of range or, at ``init``, does not fit a parameter.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> basis = fira_jax.basis.Adaptive(energy=0.9)
      >>> tx = fira_jax.adarankgrad(learning_rate=1e-2, rank=4, basis=basis)
      >>> state = tx.init({"w": jnp.ones((8, 16))})

    References:
      Refael et al., `AdaRankGrad <https://arxiv.org/abs/2410.17881>`_, 2024. Unverified: the share
      of energy, the threshold of the refresh, and the second moment's turn, which taken literally
      (:math:`T V`) makes it negative. The published supremum of ranks is read as the least one
      that suffices.
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
        bias_correction="inside",
        carry=carry,
        mu_dtype=mu_dtype,
        nu_dtype=nu_dtype,
    )
    return optax.chain(
        low_rank_project(low_rank),
        inner,
        project_back(),
        *descent(learning_rate, weight_decay, mask),
    )

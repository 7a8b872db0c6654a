"""VLoRP: random projections of small pieces of each matrix, adapted at full size by ProjFactor."""

from __future__ import annotations

from typing import Any

import jax
import optax

from fira_jax.arguments import BasisLike, Moments, Rank, Side
from fira_jax.low_rank import LowRank
from fira_jax.methods.shared import descent, shared_arguments
from fira_jax.transforms.adam import scale_by_adam
from fira_jax.transforms.factored import project_back_by_factors
from fira_jax.transforms.in_subspace import in_subspace
from fira_jax.transforms.project import low_rank_project, project_back


@shared_arguments
def vlorp(
    learning_rate: optax.ScalarOrSchedule,
    rank: Rank = 32,
    update_proj_gap: int = 100,
    scale: jax.typing.ArrayLike = 1.0,
    base_optimizer: optax.GradientTransformation | None = None,
    weight_decay: jax.typing.ArrayLike = 0.0,
    mask: Any = None,
    weight_dimension_numbers: Any = None,
    *,
    pieces: int | None = None,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-6,
    basis: BasisLike = "random",
    side: Side = "short",
    moments: Moments = "keep",
    seed: jax.typing.ArrayLike = 0,
    mu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""VLoRP: one small random projection, shared by all pieces of a matrix.

    The compressed side, of length :math:`a`, is cut into :math:`c` pieces, each of which is
    projected to rank :math:`r`: at a fixed budget :math:`c r` many pieces of a small rank do better
    than one of a large rank. Only the first moment lives there; the second is Adafactor's, of the
    gradient as the projection sees it (:func:`fira_jax.project_back_by_factors`). The basis is
    regenerated from the seed. State: :math:`bcr + a + b` elements for a matrix with sides
    :math:`a \le b`. Parameters that are not projected get Adam.

    Args:
      rank: :math:`r`, of each piece. Static.
      update_proj_gap: steps between two bases. Static.
      scale: :math:`\alpha`; it cancels but for :math:`\epsilon`, unless there is a
        ``base_optimizer``.
      base_optimizer: replaces ProjFactor, in the subspace, and Adam elsewhere; any Optax
        transformation without a learning rate.
      weight_dimension_numbers: which parameters are projected and along which axes, see
        :class:`fira_jax.LowRank`. The authors project attention and MLP weights.
      pieces: :math:`c`, one if None; must divide the compressed side of every projected matrix. The
        published fine-tuning has 256, with rank 1 and a gap of 30. Static.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: :math:`\epsilon`.
      basis: see :class:`fira_jax.LowRank`. One that is found from the gradient is found for
        each piece.
      moments: what happens to the first moment at a new basis: ``"keep"`` (as released, though it
        is then decoded by another basis than it was encoded with) or ``"reset"``.

    Raises:
      TypeError: ``rank``, ``update_proj_gap`` or ``pieces`` is not a static int.
      ValueError: an argument is out of range or, at ``init``, does not fit a parameter.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> tx = fira_jax.vlorp(1e-3, rank=1, pieces=4)
      >>> fira_jax.describe(tx, {"w": jnp.ones((8, 16))}).rows[0].state_bytes  # 4 (bcr + a + b)
      352

    References:
      Wang et al., `VLoRP and ProjFactor <https://arxiv.org/abs/2505.01744>`_, 2025. Deviations from
      the released code: a piece is a contiguous part of the compressed side whichever side that
      is, and with gradient accumulation the basis changes between steps only.
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
        pieces=1 if pieces is None else pieces,
    )
    if base_optimizer is None:
        adam = scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype)
        inside = optax.chain(
            project_back_by_factors(low_rank, b1, b2, eps, mu_dtype=mu_dtype),
            optax.masked(adam, low_rank.elsewhere),
        )
    else:
        inside = optax.chain(in_subspace(low_rank, base_optimizer), project_back())
    return optax.chain(
        low_rank_project(low_rank),
        inside,
        *descent(learning_rate, weight_decay, mask),
    )

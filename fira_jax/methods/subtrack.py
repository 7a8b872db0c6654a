"""SubTrack++: Fira in a subspace that follows the gradient instead of jumping after it."""

from __future__ import annotations

from typing import Any, Literal

import jax
import optax

from fira_jax.basis import Basis, Grassmann, Svd
from fira_jax.low_rank import LowRank
from fira_jax.plan import Side
from fira_jax.transforms.adam import scale_by_adam_in_subspace
from fira_jax.transforms.limiter import norm_growth_limit
from fira_jax.transforms.project import low_rank_project, project_back
from fira_jax.transforms.residual import fira_residual_scale


def subtrack(
    learning_rate: optax.ScalarOrSchedule,
    rank: int = 128,
    update_proj_gap: int = 200,
    scale: jax.typing.ArrayLike = 0.25,
    base_optimizer: None = None,
    weight_decay: jax.typing.ArrayLike = 0.0,
    mask: Any = None,
    weight_dimension_numbers: Any = None,
    *,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    gamma: jax.typing.ArrayLike | None = 1.01,
    form: Literal["released", "paper"] = "paper",
    carry: Literal["raw", "central"] = "central",
    basis: str | Basis = Grassmann(step=10.0, start=Svd()),  # noqa: B008  # frozen
    side: Side = "short",
    refresh: Any = "fixed",
    seed: jax.typing.ArrayLike = 0,
    basis_dtype: jax.typing.DTypeLike | None = None,
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""SubTrack++: a subspace tracked on the Grassmann manifold, and Fira's use of what it misses.

    At a refresh the basis takes one step along a geodesic, away from the direction in which it
    errs most (:class:`fira_jax.basis.Grassmann`); the moments turn with it. The update is
    :func:`fira_jax.fira`'s. State: :math:`ar + 2br + 1` elements for a matrix with sides
    :math:`a \le b`.

    Args:
      learning_rate: a scalar or a schedule.
      rank: dimension of the subspace. Static.
      update_proj_gap: steps between two steps of the basis. Static.
      scale: :math:`\alpha`.
      base_optimizer: None; the moments of another optimizer cannot be turned.
      weight_decay: decoupled, as in ``optax.adamw``.
      mask: which parameters decay, as in ``optax.add_decayed_weights``.
      weight_dimension_numbers: which parameters are projected and along which axes, see
        :class:`fira_jax.LowRank`.
      b1: Adam's decay of the first moment.
      b2: Adam's decay of the second moment.
      eps: Adam's :math:`\epsilon`.
      gamma: the limiter's growth factor; None for no limiter.
      form: see :func:`fira_jax.fira`.
      carry: how the second moment turns, see :func:`fira_jax.scale_by_adam_in_subspace`.
      basis: how it moves, with the size of its step, and where it starts.
      side: see :class:`fira_jax.LowRank`.
      refresh: see :class:`fira_jax.LowRank`.
      seed: see :class:`fira_jax.LowRank`.
      basis_dtype: dtype of the stored basis.
      mu_dtype: dtype of the first moments.
      nu_dtype: dtype of the second moments.

    Raises:
      TypeError: ``rank`` or ``update_proj_gap`` is not a static int.
      ValueError: an argument is out of range or, at ``init``, does not fit a parameter.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> tx = fira_jax.subtrack(learning_rate=1e-2, rank=4, update_proj_gap=200)
      >>> state = tx.init({"w": jnp.ones((8, 16))})

    References:
      Rajabi et al., `SubTrack++ <https://arxiv.org/abs/2502.01586>`_, 2025: the paper, not the
      released code, which never moves the basis of a tall or square matrix. Unverified: whether
      :math:`\alpha` multiplies the recovered part (``form``), and the rank one fit by an exact
      singular triple.
    """
    if base_optimizer is not None:
        raise ValueError(
            "subtrack turns Adam's moments with the basis; base_optimizer must be None"
        )
    low_rank = LowRank(
        rank,
        update_proj_gap,
        scale,
        basis=basis,
        side=side,
        weight_dimension_numbers=weight_dimension_numbers,
        seed=seed,
        moments="carry",
        refresh=refresh,
        basis_dtype=basis_dtype,
    )
    where: Literal["outside", "inside"] = "outside" if form == "released" else "inside"
    return optax.chain(
        low_rank_project(low_rank),
        scale_by_adam_in_subspace(
            low_rank,
            b1,
            b2,
            eps,
            bias_correction=where,
            carry=carry,
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        fira_residual_scale(form),
        optax.identity() if gamma is None else norm_growth_limit(low_rank, gamma),
        project_back(),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )

"""SubTrack++: Fira in a subspace that follows the gradient instead of jumping after it."""

from __future__ import annotations

from typing import Any, Literal

import jax
import optax

from fira_jax.arguments import BasisLike, Carry, Form, Rank, RefreshLike, Side
from fira_jax.basis import Grassmann, Svd
from fira_jax.low_rank import LowRank
from fira_jax.methods.shared import descent, limiter, shared_arguments
from fira_jax.transforms.adam import scale_by_adam_in_subspace
from fira_jax.transforms.project import low_rank_project, project_back
from fira_jax.transforms.residual import fira_residual_scale


@shared_arguments
def subtrack(
    learning_rate: optax.ScalarOrSchedule,
    rank: Rank = 128,
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
    form: Form = "paper",
    carry: Carry = "central",
    basis: BasisLike = Grassmann(step=10.0, start=Svd()),  # noqa: B008  # frozen
    side: Side = "short",
    refresh: RefreshLike = "fixed",
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
      update_proj_gap: steps between two steps of the basis. Static.
      scale: :math:`\alpha`.
      base_optimizer: None; the moments of another optimizer cannot be turned.
      basis: how it moves, with the size of its step, and where it starts.

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
        limiter(low_rank, gamma),
        project_back(),
        *descent(learning_rate, weight_decay, mask),
    )

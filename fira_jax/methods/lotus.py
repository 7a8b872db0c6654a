"""Lotus: GaLore that changes its subspace when gradients have stopped moving in it."""

from __future__ import annotations

from typing import Any

import jax
import optax

from fira_jax.arguments import BasisLike, Moments, Rank, RefreshLike, Side
from fira_jax.methods.galore import galore
from fira_jax.methods.shared import shared_arguments
from fira_jax.refresh import Displacement


@shared_arguments
def lotus(
    learning_rate: optax.ScalarOrSchedule,
    rank: Rank = 128,
    update_proj_gap: int = 50,
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
    refresh: RefreshLike = Displacement(gamma=0.01),  # noqa: B008  # frozen
    side: Side = "short",
    moments: Moments = "keep",
    seed: jax.typing.ArrayLike = 0,
    basis_dtype: jax.typing.DTypeLike | None = None,
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Lotus: a randomized SVD, and a new subspace when the old one is used up.

    :func:`fira_jax.galore` with the refresh rule :class:`fira_jax.refresh.Displacement`. Every
    ``update_proj_gap`` steps each matrix is asked how far its unit projected gradient has come from
    the one at its last switch; below :math:`\gamma` for each step since, it switches. State:
    :math:`ar + 3br + 1` elements for a matrix with sides :math:`a \le b`.

    Args:
      update_proj_gap: steps between two checks, 25 to 100 in the paper. Static.
      refresh: the rule, with its :math:`\gamma`, 0.005 to 0.02 in the paper.

    Raises:
      TypeError: ``rank`` or ``update_proj_gap`` is not a static int.
      ValueError: an argument is out of range or, at ``init``, does not fit a parameter.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> params = {"w": jnp.ones((8, 16))}
      >>> fira_jax.describe(fira_jax.lotus(1e-2, rank=4), params).rows[0].state_bytes
      900

    References:
      `Lotus <https://arxiv.org/abs/2602.01233>`_, 2026, algorithm 1. Unverified: what happens to
      the moments at a switch (here they stay as they are), and the size of the sketch.
    """
    return galore(
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
        bias_correction=bias_correction,
        basis=basis,
        side=side,
        refresh=refresh,
        moments=moments,
        seed=seed,
        basis_dtype=basis_dtype,
        mu_dtype=mu_dtype,
        nu_dtype=nu_dtype,
    )

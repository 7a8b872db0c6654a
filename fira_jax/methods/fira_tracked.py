"""Fira in a subspace that follows the gradient, and takes Adam's moments along."""

from __future__ import annotations

from typing import Any

import jax
import optax

from fira_jax.arguments import BasisLike, Moments, Rank, RefreshLike, Side
from fira_jax.basis import PowerIteration
from fira_jax.methods.fira import fira
from fira_jax.methods.shared import shared_arguments


@shared_arguments
def fira_tracked(
    learning_rate: optax.ScalarOrSchedule,
    rank: Rank = 128,
    update_proj_gap: int = 10,
    scale: jax.typing.ArrayLike = 0.25,
    base_optimizer: optax.GradientTransformation | None = None,
    weight_decay: jax.typing.ArrayLike = 0.0,
    mask: Any = None,
    weight_dimension_numbers: Any = None,
    *,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-6,
    gamma: jax.typing.ArrayLike | None = 1.01,
    basis: BasisLike = PowerIteration(),  # noqa: B008  # frozen
    side: Side = "short",
    refresh: RefreshLike = "fixed",
    moments: Moments = "carry",
    seed: jax.typing.ArrayLike = 0,
    basis_dtype: jax.typing.DTypeLike | None = None,
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Fira with a subspace that moves often, a little at a time, and with moments that move along.

    Released Fira finds its subspace anew every 200 steps and leaves the moments as they are: they
    then belong to directions that are no longer there. Refreshed more often so, it gains little.
    Here the basis takes one block power iteration every few steps, which costs two products, and
    the moments are turned into the new basis:

    .. math::

        P \leftarrow \mathrm{qr}(G G^\top P), \qquad
        M \leftarrow T M, \quad V \leftarrow (T \circ T) V, \quad T = P_{new}^\top P_{old}

    All else is :func:`fira_jax.fira`, and so is the state: :math:`ar + 2br + 1` elements for a
    matrix with sides :math:`a \le b`.

    Args:
      update_proj_gap: steps between two power iterations. Static.
      base_optimizer: replaces Adam; any Optax transformation without a learning rate. If it is not
        known how its state turns into a new basis, ``init`` says so, see
        :class:`fira_jax.transforms.Turn`.
      seed: see :class:`fira_jax.LowRank`; here of the first basis only.

    Raises:
      TypeError: ``rank`` or ``update_proj_gap`` is not a static int.
      ValueError: an argument is out of range or, at ``init``, does not fit a parameter.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> params = {"w": jnp.zeros((64, 176))}
      >>> for method in (fira_jax.fira_tracked, fira_jax.fira):
      ...     print(fira_jax.describe(method(1e-2, rank=8), params).rows[0].state_bytes)
      13316
      13316

    References:
      This library's own, from :class:`fira_jax.basis.PowerIteration` (after Robert et al., `LDAdam
      <https://arxiv.org/abs/2410.16103>`_, 2024, and Vogels et al., `PowerSGD
      <https://arxiv.org/abs/1905.13727>`_, 2019) and Chen et al., `Fira
      <https://arxiv.org/abs/2410.01623>`_, 2024. What it was measured against, and how little, is
      in the documentation under results.
    """
    return fira(
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
        basis=basis,
        side=side,
        refresh=refresh,
        moments=moments,
        seed=seed,
        basis_dtype=basis_dtype,
        mu_dtype=mu_dtype,
        nu_dtype=nu_dtype,
    )

"""Fira in a subspace that follows the gradient, and takes Adam's moments along."""

from __future__ import annotations

from typing import Any, Literal

import jax
import optax

from fira_jax.basis import Basis, PowerIteration
from fira_jax.methods.fira import fira


def fira_tracked(
    learning_rate: optax.ScalarOrSchedule,
    rank: int = 128,
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
    basis: str | Basis = PowerIteration(),  # noqa: B008  # frozen
    side: Literal["short", "long"] = "short",
    refresh: Any = "fixed",
    moments: Literal["keep", "carry"] = "carry",
    seed: jax.typing.ArrayLike = 0,
    basis_dtype: jax.typing.DTypeLike | None = None,
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Fira with a subspace that moves often, a little at a time, and with moments that move along.

    Released Fira finds its subspace anew every 200 steps and leaves the moments as they are: they
    then belong to directions that are no longer there. Refreshed more often so, it gains nothing.
    Here the basis takes one block power iteration every few steps, which costs two products, and
    the moments are turned into the new basis:

    .. math::

        P \leftarrow \mathrm{qr}(G G^\top P), \qquad
        M \leftarrow T M, \quad V \leftarrow (T \circ T) V, \quad T = P_{new}^\top P_{old}

    All else is :func:`fira_jax.fira`, and so is the state: :math:`ar + 2br + 1` elements for a
    matrix with sides :math:`a \le b`.

    Args:
      learning_rate: a scalar or a schedule.
      rank: dimension of the subspace. Static.
      update_proj_gap: steps between two power iterations. Static.
      scale: :math:`\alpha`. The subspace part moves at ``learning_rate * scale``.
      base_optimizer: replaces Adam; any Optax transformation without a learning rate. It cannot be
        turned into a new basis: ``moments="keep"`` goes with it.
      weight_decay: decoupled, as in ``optax.adamw``.
      mask: which parameters decay, as in ``optax.add_decayed_weights``.
      weight_dimension_numbers: which parameters are projected and along which axes, see
        :class:`fira_jax.LowRank`.
      b1: Adam's decay of the first moment.
      b2: Adam's decay of the second moment.
      eps: Adam's :math:`\epsilon`.
      gamma: the limiter's growth factor; None for no limiter.
      basis: see :class:`fira_jax.LowRank`.
      side: see :class:`fira_jax.LowRank`.
      refresh: see :class:`fira_jax.LowRank`.
      moments: see :class:`fira_jax.LowRank`.
      seed: see :class:`fira_jax.LowRank`; here of the first basis only.
      basis_dtype: dtype of the stored basis.
      mu_dtype: dtype of the first moments.
      nu_dtype: dtype of the second moments.

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

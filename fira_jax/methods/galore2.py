"""GaLore 2: GaLore whose refresh is a randomized SVD."""

from __future__ import annotations

from typing import Any

import jax
import optax

from fira_jax.arguments import BasisLike, Moments, Rank, RefreshLike, Side
from fira_jax.basis import Randomized
from fira_jax.methods.galore import galore
from fira_jax.methods.shared import shared_arguments


@shared_arguments
def galore2(
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
    basis: BasisLike = Randomized(oversample=8, power_iterations=1),  # noqa: B008  # frozen
    side: Side = "short",
    refresh: RefreshLike = "fixed",
    moments: Moments = "keep",
    seed: jax.typing.ArrayLike = 0,
    basis_dtype: jax.typing.DTypeLike | None = None,
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""GaLore 2: GaLore whose refresh is made for many devices.

    :func:`fira_jax.galore` and its state, :math:`ar + 2br` elements for a matrix with sides
    :math:`a \le b`. A refresh consists of products and of small factorizations, so that a gradient
    split over devices is never gathered.

    Args:
      basis: see :class:`fira_jax.basis.Randomized` for the size of the sketch.

    Raises:
      TypeError: ``rank`` or ``update_proj_gap`` is not a static int.
      ValueError: an argument is out of range or, at ``init``, does not fit a parameter.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> tx = fira_jax.galore2(learning_rate=1e-2, rank=4)
      >>> state = tx.init({"w": jnp.ones((8, 16))})

    References:
      Su et al., `GaLore 2 <https://arxiv.org/abs/2504.20437>`_, 2025. Unverified: its oversampling
      and number of power iterations, which are not published. The defaults are usual ones;
      :func:`fira_jax.galore` refreshes in the same way with more of both.
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

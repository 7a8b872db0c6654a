"""GaLore 2: GaLore whose refresh is a randomized SVD."""

from __future__ import annotations

from typing import Any, Literal

import jax
import optax

from fira_jax.basis import Basis, Randomized
from fira_jax.methods.galore import galore


def galore2(
    learning_rate: optax.ScalarOrSchedule,
    rank: int = 128,
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
    basis: str | Basis = Randomized(oversample=8, power_iterations=1),  # noqa: B008  # frozen
    side: Literal["short", "long"] = "short",
    refresh: Any = "fixed",
    moments: Literal["keep", "carry"] = "keep",
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
      learning_rate: a scalar or a schedule.
      rank: dimension of the subspace. Static.
      update_proj_gap: steps between refreshes of the basis. Static.
      scale: :math:`\alpha`; projected weights move at ``learning_rate * scale``.
      base_optimizer: replaces Adam; any Optax transformation without a learning rate.
      weight_decay: decoupled, as in ``optax.adamw``.
      mask: which parameters decay, as in ``optax.add_decayed_weights``.
      weight_dimension_numbers: which parameters are projected and along which axes, see
        :class:`fira_jax.LowRank`.
      b1: Adam's decay of the first moment.
      b2: Adam's decay of the second moment.
      eps: Adam's :math:`\epsilon`.
      bias_correction: whether Adam corrects its bias.
      basis: see :class:`fira_jax.basis.Randomized` for the size of the sketch.
      side: see :class:`fira_jax.LowRank`.
      refresh: see :class:`fira_jax.LowRank`.
      moments: see :class:`fira_jax.LowRank`.
      seed: see :class:`fira_jax.LowRank`.
      basis_dtype: dtype of the stored basis.
      mu_dtype: dtype of the first moments.
      nu_dtype: dtype of the second moments.

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

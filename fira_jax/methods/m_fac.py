"""M-FAC: the inverse of an empirical Fisher matrix from a window of gradients, never formed."""

from __future__ import annotations

from typing import Any

import jax
import optax

from fira_jax.dtypes import steady
from fira_jax.methods.shared import descent, shared_arguments
from fira_jax.transforms.m_fac import scale_by_m_fac


@shared_arguments
def m_fac(
    learning_rate: optax.ScalarOrSchedule,
    rank: int = 1024,
    weight_decay: jax.typing.ArrayLike = 0.0,
    mask: Any = None,
    *,
    damping: jax.typing.ArrayLike = 1e-5,
    momentum: jax.typing.ArrayLike | None = None,
    gradient_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""M-FAC: matrix-free preconditioning with an inverse empirical Fisher matrix.

    The direction :math:`F^{-1} g_t` of :func:`fira_jax.transforms.scale_by_m_fac`, averaged over
    time if there is ``momentum``. State: :math:`m d + m^2` elements for a model of :math:`d`
    parameters (:math:`d` more with momentum): a method for small models, or inside a subspace as
    ``fira_jax.galore(..., base_optimizer=fira_jax.transforms.scale_by_m_fac(32))``.

    Args:
      learning_rate: a scalar or a schedule; 1e-3 in the released code.
      rank: :math:`m`, gradients in the window. Static.
      damping: :math:`\lambda`.
      momentum: decay of a running average of directions; None for none.
      gradient_dtype: dtype in which gradients are kept; None for the parameter's.

    Raises:
      TypeError: ``rank`` is not a static int.
      ValueError: an argument is out of range.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> tx = fira_jax.m_fac(learning_rate=1e-3, rank=32, momentum=0.9)
      >>> tx.init({"w": jnp.ones((8, 16))})[0].gradients["w"].shape
      (32, 8, 16)

    References:
      Frantar, Kurtic and Alistarh, `M-FAC: Efficient Matrix-Free Approximations of Second-Order
      Information <https://arxiv.org/abs/2107.03356>`_, 2021. The released code adds weight decay to
      the gradient; for that, put ``optax.add_decayed_weights`` before this.
    """
    return optax.chain(
        scale_by_m_fac(rank, damping, gradient_dtype=gradient_dtype),
        optax.identity() if momentum is None else steady(optax.ema(momentum, debias=False)),
        *descent(learning_rate, weight_decay, mask),
    )

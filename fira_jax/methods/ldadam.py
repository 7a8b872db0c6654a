"""LDAdam: Adam in a subspace that is learnt anew at every step, with what it misses fed back."""

from __future__ import annotations

from typing import Any

import jax
import optax

from fira_jax.arguments import BasisLike, Carry, Rank, Side
from fira_jax.basis import PowerIteration
from fira_jax.low_rank import LowRank
from fira_jax.methods.shared import descent, shared_arguments
from fira_jax.transforms.momentum_feedback import momentum_feedback
from fira_jax.transforms.project import project_back


@shared_arguments
def ldadam(
    learning_rate: optax.ScalarOrSchedule,
    rank: Rank = 16,
    update_proj_gap: int = 1,
    scale: jax.typing.ArrayLike = 1.0,
    base_optimizer: None = None,
    weight_decay: jax.typing.ArrayLike = 0.0,
    mask: Any = None,
    weight_dimension_numbers: Any = None,
    *,
    b1: jax.typing.ArrayLike = 0.908,
    b2: jax.typing.ArrayLike = 0.99,
    eps: jax.typing.ArrayLike = 1e-8,
    rho: jax.typing.ArrayLike = 0.908,
    error_feedback: bool = True,
    carry: Carry = "central",
    basis: BasisLike = PowerIteration(),  # noqa: B008  # frozen
    side: Side = "short",
    seed: jax.typing.ArrayLike = 0,
    basis_dtype: jax.typing.DTypeLike | None = None,
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""LDAdam: low-dimensional Adam with error feedback.

    .. math::

        A = G + E, \quad P = \mathrm{qr}(B B^\top P_{old}), \quad
        B = \rho P_{old} \hat M + (1 - \rho) A, \quad U = P\, \mathrm{Adam}(P^\top A)

    One power iteration a step (:class:`fira_jax.basis.PowerIteration`), the moments turning with
    the basis. What neither the gradient nor the momentum could keep comes back with the next
    gradient, :math:`E`, see :func:`fira_jax.momentum_feedback`. State: :math:`ar + 2br` elements
    for a matrix with sides :math:`a \le b`, and :math:`ab` for :math:`E`.

    Args:
      update_proj_gap: steps between two power iterations. Static.
      scale: projected weights move at ``learning_rate * scale``.
      base_optimizer: None; the moments of another optimizer cannot be turned.
      rho: :math:`\rho`, weight of the momentum in what the basis is found from.
      error_feedback: whether there is an :math:`E`; without it the state is :math:`ar + 2br`.
      basis: how it moves, and where it starts.

    Raises:
      TypeError: ``rank`` or ``update_proj_gap`` is not a static int.
      ValueError: an argument is out of range or, at ``init``, does not fit a parameter.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> params = {"w": jnp.ones((8, 16))}
      >>> fira_jax.describe(fira_jax.ldadam(1e-3, rank=2), params).rows[0].state_bytes
      832

    References:
      Robert et al., `LDAdam: Adaptive Optimization from Low-Dimensional Gradient Statistics
      <https://arxiv.org/abs/2410.16103>`_, 2024. Unverified: how the first basis is found. The
      released code hides :math:`E` in the gradient's buffer, which JAX does not have.
    """
    if base_optimizer is not None:
        raise ValueError("ldadam turns Adam's moments with the basis; base_optimizer must be None")
    low_rank = LowRank(
        rank,
        update_proj_gap,
        scale,
        basis=basis,
        side=side,
        weight_dimension_numbers=weight_dimension_numbers,
        seed=seed,
        moments="carry",
        refresh="fixed",
        basis_dtype=basis_dtype,
    )
    return optax.chain(
        momentum_feedback(
            low_rank,
            b1,
            b2,
            eps,
            rho=rho,
            error_feedback=error_feedback,
            carry=carry,
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        project_back(),
        *descent(learning_rate, weight_decay, mask),
    )

"""Fira: low-rank Adam plus the scaled rest of the gradient, so that training is full-rank."""

from __future__ import annotations

from typing import Any

import jax
import optax

from fira_jax.arguments import BasisLike, Form, Granularity, Moments, Rank, RefreshLike, Side
from fira_jax.low_rank import LowRank
from fira_jax.methods.shared import adam_or, descent, limiter, shared_arguments
from fira_jax.transforms.project import low_rank_project, project_back
from fira_jax.transforms.residual import fira_residual_scale


@shared_arguments
def fira(
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
    gamma: jax.typing.ArrayLike | None = 1.01,
    form: Form = "released",
    granularity: Granularity = "column",
    bias_correction: bool = True,
    basis: BasisLike = "randomized",
    side: Side = "short",
    refresh: RefreshLike = "fixed",
    moments: Moments = "keep",
    seed: jax.typing.ArrayLike = 0,
    basis_dtype: jax.typing.DTypeLike | None = None,
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Fira: full-rank training under a low-rank constraint on the optimizer's state.

    Adam runs on the gradient's coordinates :math:`R = P^\top G` in a subspace; the rest of the
    gradient, for which there is no state, is scaled column by column by
    :math:`\phi_j = \lVert N_j \rVert / \lVert R_j \rVert`, as Adam scaled that column inside:

    .. math::

        U = c \left( \alpha P N + \phi \circ (G - \kappa P R) / \ell \right)

    with the limiter :math:`\ell` letting the second part grow by a factor :math:`\gamma` a step at
    most. State: :math:`ar + 2br + 1` elements for a matrix with sides :math:`a \le b` (Adam:
    :math:`2ab`). Parameters that are not projected get Adam at the full learning rate.

    Args:
      scale: :math:`\alpha`. The subspace part moves at ``learning_rate * scale``.
      base_optimizer: replaces Adam in the subspace and elsewhere; any Optax transformation without
        a learning rate. The ``b1`` to ``eps``, ``mu_dtype`` and ``nu_dtype`` do not apply then.
      weight_decay: decoupled, as in ``optax.adamw``. (The released code decays the weight after the
        step instead of before: a factor :math:`1 - \eta\lambda` on the step.)
      weight_dimension_numbers: which parameters are projected and along which axes, see
        :class:`fira_jax.LowRank`. The paper projects attention and MLP weights:
        ``fira_jax.match_paths(("attn", "mlp"))``.
      form: ``"released"`` reproduces the authors' code: :math:`\kappa = \alpha`, bias correction
        outside :math:`N`. ``"paper"`` follows algorithm 1: :math:`\kappa = 1`, :math:`\alpha` on
        both parts, bias correction inside.
      granularity: ``"column"`` or ``"matrix"`` scales.
      basis: see :class:`fira_jax.LowRank`; the authors use ``"svd"``.

    Raises:
      TypeError: ``rank`` or ``update_proj_gap`` is not a static int.
      ValueError: an argument is out of range or, at ``init``, does not fit a parameter.

    Example:
      >>> import fira_jax, jax, jax.numpy as jnp, optax
      >>> def loss(params):
      ...     return jnp.sum((params["w"] - 3.0) ** 2)
      >>> params = {"w": jnp.zeros((8, 16))}
      >>> tx = fira_jax.fira(learning_rate=0.3, rank=2, update_proj_gap=20)
      >>> state = tx.init(params)
      >>> for _ in range(60):
      ...     updates, state = tx.update(jax.grad(loss)(params), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> bool(loss(params) < 0.01 * loss({"w": jnp.zeros((8, 16))}))
      True

    References:
      Chen et al., `Fira: Can We Achieve Full-rank Training of LLMs Under Low-rank Constraint?
      <https://arxiv.org/abs/2410.01623>`_, 2024. Deviations from the released code: the default
      basis, canonical signs, weight decay's order, and a limiter that survives zero gradients.
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
        refresh=refresh,
        basis_dtype=basis_dtype,
    )
    where = "outside" if form == "released" else "inside"
    inner = adam_or(
        base_optimizer,
        low_rank,
        b1=b1,
        b2=b2,
        eps=eps,
        bias_correction=where if bias_correction else "none",
        mu_dtype=mu_dtype,
        nu_dtype=nu_dtype,
    )
    return optax.chain(
        low_rank_project(low_rank),
        inner,
        fira_residual_scale(form, granularity=granularity),
        limiter(low_rank, gamma),
        project_back(),
        *descent(learning_rate, weight_decay, mask),
    )

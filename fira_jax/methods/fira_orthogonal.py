"""Tracked Fira, all directions of whose update then get one size."""

from __future__ import annotations

from typing import Any

import jax
import optax

from fira_jax.arguments import BasisLike, Moments, Rank, RefreshLike, Side
from fira_jax.basis import PowerIteration
from fira_jax.low_rank import LowRank
from fira_jax.methods.shared import adam_or, descent, shared_arguments
from fira_jax.transforms.normalize import orthogonal
from fira_jax.transforms.project import low_rank_project, project_back
from fira_jax.transforms.residual import fira_residual_scale


@shared_arguments
def fira_orthogonal(
    learning_rate: optax.ScalarOrSchedule,
    rank: Rank = 128,
    update_proj_gap: int = 10,
    scale: jax.typing.ArrayLike = 0.25,
    base_optimizer: optax.GradientTransformation | None = None,
    weight_decay: jax.typing.ArrayLike = 0.0,
    mask: Any = None,
    weight_dimension_numbers: Any = None,
    *,
    consistent_rms: jax.typing.ArrayLike = 0.05,
    ns_steps: int = 5,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-6,
    basis: BasisLike = PowerIteration(),  # noqa: B008  # frozen
    side: Side = "short",
    refresh: RefreshLike = "fixed",
    moments: Moments = "carry",
    seed: jax.typing.ArrayLike = 0,
    basis_dtype: jax.typing.DTypeLike | None = None,
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Fira's update with all of its directions at one size: Muon's step on Fira's memory.

    :func:`fira_jax.fira_tracked` says what the update is; Muon's iteration then brings its singular
    values to a common one:

    .. math::

        X = \alpha P N + \phi \circ (G - \alpha P R), \qquad
        U = \rho \sqrt{\max(m, n)}\; \mathrm{orth}(X)

    Every direction in which a matrix's gradient points moves as far as every other, not only the
    few that Adam's moments are kept for; moments and the residual's scale decide which directions
    those are. Nothing is left for a limiter to limit, so there is none. State: :math:`ar + 2br`
    elements for a matrix with sides :math:`a \le b`, Fira's less one. Time: for each of the
    ``ns_steps`` two products of :math:`a \times b` by :math:`a` and one of :math:`a \times a`,
    however large the batch. Parameters that are not projected get Adam at the full learning rate.

    Args:
      update_proj_gap: steps between two power iterations. Static.
      scale: :math:`\alpha`, the weight of the subspace beside the residual.
      consistent_rms: :math:`\rho`, root mean square of an update of full rank, times the learning
        rate; as in ``optax.contrib.muon``.
      ns_steps: rounds of Muon's iteration. Static.
      base_optimizer: replaces Adam; any Optax transformation without a learning rate. If it is not
        known how its state turns into a new basis, ``init`` says so, see
        :class:`fira_jax.transforms.Turn`.
      seed: see :class:`fira_jax.LowRank`; here of the first basis only.

    Raises:
      TypeError: ``rank``, ``update_proj_gap`` or ``ns_steps`` is not a static int.
      ValueError: an argument is out of range or, at ``init``, does not fit a parameter.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> tx = fira_jax.fira_orthogonal(1e-2, rank=8)
      >>> params = {"w": jnp.zeros((64, 176))}
      >>> fira_jax.describe(tx, params).rows[0].state_bytes  # 4 (ar + 2br)
      13312
      >>> grads = {"w": jnp.linspace(-1.0, 1.0, 64 * 176).reshape(64, 176) ** 3}
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> bool(jnp.linalg.norm(updates["w"], 2) < 1.3 * 1e-2 * 0.05 * 176**0.5)
      True

    References:
      This library's own, from Chen et al., `Fira <https://arxiv.org/abs/2410.01623>`_, 2024, and
      Jordan et al., `Muon <https://kellerjordan.github.io/posts/muon/>`_, 2024. What it was
      measured against, and how little, is in the documentation under results.
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
    adam = adam_or(
        base_optimizer,
        low_rank,
        b1=b1,
        b2=b2,
        eps=eps,
        bias_correction="outside",
        mu_dtype=mu_dtype,
        nu_dtype=nu_dtype,
    )
    direction = orthogonal(ns_steps)
    return optax.chain(
        low_rank_project(low_rank),
        adam,
        fira_residual_scale(),
        project_back(lambda x: direction(x) * consistent_rms),
        *descent(learning_rate, weight_decay, mask),
    )

"""Keeps the residual from growing suddenly."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fira_jax.checks import number, require_choice
from fira_jax.low_rank import LowRank
from fira_jax.matrix_view import MatrixView
from fira_jax.norms import frobenius_norm
from fira_jax.sharding.explicit import on_any_mesh
from fira_jax.subspace import Subspace
from fira_jax.transforms.residual import residual_norm
from fira_jax.trees import Params, on_nodes_with_state


class NormGrowthLimitState(NamedTuple):
    """State of :func:`norm_growth_limit`.

    Attributes:
      previous: norm of each matrix's last residual that was not zero, after limiting, float32
        or wider ``[*batch]``; 0 before the first; ``optax.MaskedNode`` for parameters not
        projected.
    """

    previous: Any


@on_any_mesh
def norm_growth_limit(
    low_rank: LowRank,
    gamma: jax.typing.ArrayLike = 1.01,
    *,
    eps: jax.typing.ArrayLike = 1e-8,
    watch: Literal["residual", "subspace", "core"] = "residual",
) -> optax.GradientTransformationExtraArgs:
    r"""Lets the norm of a matrix's residual grow by no more than a factor :math:`\gamma` a step.

    .. math::

        \ell = \max\left( \frac{\lVert S_t \rVert}{\lVert S_{t-1} \rVert + \epsilon},
        \gamma \right) / \gamma, \qquad S_t \leftarrow S_t / \ell, \qquad
        S = s \circ (G - \kappa P R)

    The norm comes from arrays that exist already (:math:`S` is never formed), in float32 or wider
    whatever the gradient's dtype: in bfloat16 1.01 is 1.0078. Nodes without a residual pass
    unchanged. With ``watch="subspace"`` it is the norm of :math:`N` that may not grow, and the
    whole step is divided by :math:`\ell`, as gradient wavelets have it; with ``"core"`` only
    :math:`N` is.

    Args:
      low_rank: what "low rank" means for this model.
      gamma: :math:`\gamma`, at least 1.
      eps: :math:`\epsilon`.
      watch: whose norm may not grow, the ``"residual"``'s or that of the part in the
        ``"subspace"``, its ``"core"``.

    Raises:
      ValueError: ``gamma`` is a number below 1, or ``watch`` is unknown.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> limit = fira_jax.norm_growth_limit(fira_jax.LowRank(rank=2), gamma=1.01)
      >>> float(limit.init({"w": jnp.ones((8, 16))}).previous["w"])
      0.0

    References:
      Chen et al., `Fira <https://arxiv.org/abs/2410.01623>`_, 2024, section 4.3. Unlike the
      released code a previous norm of 0 counts as none: there, a first gradient of zero holds the
      residual near zero for more than a thousand steps. Likewise a step without a residual (a zero
    gradient, or one that is not finite) leaves the previous norm as it is.
    """
    require_choice("watch", watch, ("residual", "subspace", "core"))
    gamma, eps = number("gamma", gamma, least=1), number("eps", eps, least=0)

    def init(params: Params) -> NormGrowthLimitState:
        def unset(view: MatrixView, dtype: Any) -> jax.Array:
            return jnp.zeros(view.batch_shape, jnp.promote_types(dtype, jnp.float32))

        return NormGrowthLimitState(low_rank.for_each_matrix(params, unset))

    def limit(node: Subspace, previous: jax.Array) -> tuple[Subspace, jax.Array]:
        part = node.residual_scale if watch == "residual" else node.core
        if part is None:
            return node, previous
        norm = residual_norm(node) if watch == "residual" else frobenius_norm(part)
        shrink, limited = limit_growth(norm, previous, gamma, eps)
        shrink = shrink[..., None, None].astype(node.raw.dtype)
        if watch == "residual":
            return node.replace(residual_scale=shrink * part, limit=shrink), limited
        if watch == "core":
            return node.replace(core=shrink * part, limit=shrink), limited
        return node.replace(step_scale=shrink * node.step_scale, limit=shrink), limited

    return on_nodes_with_state("norm_growth_limit", init, limit)


def limit_growth(
    norm: jax.Array, previous: jax.Array, gamma: jax.typing.ArrayLike, eps: jax.typing.ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """By what to multiply so that a norm grows by ``gamma`` at most, and the norm it then has."""
    # A step without a residual says nothing about its size, an overflow nothing usable.
    known = jnp.isfinite(norm) & (norm > 0)
    norm = jnp.where(known, norm, 1)
    allowed = jnp.where(previous > 0, gamma * (previous + eps), norm)
    shrink = jnp.where(known, jnp.minimum(allowed / norm, 1), 0)
    return shrink, jnp.where(known, norm * shrink, previous).astype(previous.dtype)

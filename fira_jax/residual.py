"""What is done with the part of the gradient outside the subspace."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from fira_jax.subspace import Subspace, column_energy, map_leaves, stateless


def fira_residual_scale(
    form: Literal["released", "paper"] = "released",
    *,
    granularity: Literal["column", "matrix"] = "column",
    eps: jax.typing.ArrayLike = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    r"""Adds the residual, scaled as the optimizer scaled the part inside the subspace.

    .. math::

        s_j = \phi_j = \frac{\lVert N_{:,j} \rVert}{\lVert R_{:,j} \rVert + \epsilon}

    The released code subtracts :math:`\alpha P R` from the gradient (:math:`\kappa = \alpha`) and
    leaves the residual at full weight; the paper subtracts :math:`P R` (:math:`\kappa = 1`) and
    multiplies both parts by :math:`\alpha` (:math:`s = \alpha \phi`). They agree for
    :math:`\alpha = 1`. Keeps no state.

    Args:
      form: ``"released"`` or ``"paper"``.
      granularity: one :math:`\phi` for each column of the canonical matrix (each index along the
        side that is not compressed), or one for the ``"matrix"``.
      eps: :math:`\epsilon`.

    Raises:
      ValueError: unknown ``form`` or ``granularity``.

    Example:
      >>> import fira_jax, jax.numpy as jnp, optax
      >>> low_rank = fira_jax.LowRank(rank=2)
      >>> tx = optax.chain(
      ...     fira_jax.low_rank_project(low_rank),
      ...     fira_jax.scale_by_adam_in_subspace(low_rank),
      ...     fira_jax.fira_residual_scale(),
      ...     fira_jax.project_back(),
      ... )
      >>> state = tx.init({"w": jnp.ones((8, 16))})

    References:
      Chen et al., `Fira <https://arxiv.org/abs/2410.01623>`_, 2024, section 4.2 and algorithm 1.
    """
    if form not in ("released", "paper"):
        raise ValueError(f"form must be 'released' or 'paper', got {form!r}")
    if granularity not in ("column", "matrix"):
        raise ValueError(f"granularity must be 'column' or 'matrix', got {granularity!r}")

    def add_residual(node: Any) -> Any:
        if not isinstance(node, Subspace):
            return node
        after, before = column_energy(node.core), node.raw_energy
        if granularity == "matrix":
            after, before = (
                jnp.broadcast_to(jnp.sum(x, axis=-1, keepdims=True), x.shape)
                for x in (after, before)
            )
        phi = (jnp.sqrt(after) / (jnp.sqrt(before) + eps)).astype(node.raw.dtype)
        if form == "released":
            return node.replace(residual_scale=phi, residual_leak=node.scale)
        return node.replace(
            residual_scale=node.scale * phi, residual_leak=jnp.ones_like(node.scale)
        )

    return stateless(lambda updates: map_leaves(add_residual, updates))


def residual_norm(node: Subspace) -> jax.Array:
    r"""The norm :math:`\lVert s \circ (G - \kappa P R) \rVert_F` of each matrix, ``[*batch]``.

    From arrays that exist already. By columns, since :math:`P^\top g = r` whatever :math:`P` is,

    .. math::

        \lVert g - \kappa P r \rVert^2
        = \lVert g \rVert^2 - 2 \kappa \lVert r \rVert^2 + \kappa^2 \lVert P r \rVert^2

    and the last norm is :math:`\lVert r \rVert^2` for an orthonormal :math:`P`, else
    :math:`r^\top (P^\top P) r`. Where the residual is a tiny part of the gradient the difference
    cancels: its error is some 1e-4 of :math:`\lVert s \circ G \rVert` in float32. A square
    orthonormal basis leaves exactly :math:`(1 - \kappa) G`, which is used as it stands.
    """
    assert node.residual_scale is not None
    assert node.residual_leak is not None
    kappa, inside = node.residual_leak, node.raw_energy
    if node.orthonormal and node.view.rank == node.view.compressed_size:
        columns = jnp.square(1 - kappa) * inside
    else:
        lifted = inside
        if not node.orthonormal:
            gram = jnp.einsum(
                "...ar,...aq->...rq", node.basis, node.basis, preferred_element_type=inside.dtype
            )
            lifted = jnp.sum(node.raw * (gram @ node.raw), axis=-2, keepdims=True)
        columns = node.energy - 2 * kappa * inside + jnp.square(kappa) * lifted
    # As a product: XLA's CPU compiler makes one kernel of it, and three of a long vector's sum.
    weights = jnp.square(node.residual_scale)
    energy = jnp.einsum("...ib,...ib->...", weights, jnp.maximum(columns, 0))
    return jnp.sqrt(energy)

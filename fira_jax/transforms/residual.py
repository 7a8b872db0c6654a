"""What is done with the part of the gradient outside the subspace."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import optax

from fira_jax.checks import require_choice
from fira_jax.norms import column_energy, root
from fira_jax.sharding.explicit import on_any_mesh
from fira_jax.subspace import Subspace
from fira_jax.trees import on_nodes


@on_any_mesh
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
    require_choice("form", form, ("released", "paper"))
    require_choice("granularity", granularity, ("column", "matrix"))

    def add_residual(node: Subspace) -> Subspace:
        phi = norm_ratio(node, granularity, eps)
        if form == "released":
            return node.replace(residual_scale=phi, residual_leak=node.scale)
        return node.replace(
            residual_scale=node.scale * phi, residual_leak=jnp.ones_like(node.scale)
        )

    return on_nodes(add_residual)


@on_any_mesh
def replace_by_scaled_gradient(
    scale: jax.typing.ArrayLike = 1.0,
    *,
    granularity: Literal["column", "matrix"] = "column",
    eps: jax.typing.ArrayLike = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    r"""Lets the whole gradient move, scaled as the optimizer in the subspace scaled its sketch.

    .. math::

        U = c \sqrt{\alpha}\, \phi \circ G, \qquad
        \phi_j = \frac{\lVert N_{:,j} \rVert}{\lVert R_{:,j} \rVert + \epsilon}

    Nothing is lifted from the subspace: it only measures. Keeps no state.

    Args:
      scale: :math:`\alpha`; its root multiplies the update, as in the released code.
      granularity: one :math:`\phi` for each ``"column"`` of the canonical matrix ("channel" in the
        paper) or one for the ``"matrix"`` ("tensor").
      eps: :math:`\epsilon`.

    Raises:
      ValueError: unknown ``granularity``.

    Example:
      >>> import fira_jax, jax.numpy as jnp, optax
      >>> low_rank = fira_jax.LowRank(rank=2, basis="random")
      >>> tx = optax.chain(
      ...     fira_jax.low_rank_project(low_rank),
      ...     fira_jax.scale_by_adam_in_subspace(low_rank),
      ...     fira_jax.replace_by_scaled_gradient(),
      ...     fira_jax.project_back(),
      ... )
      >>> state = tx.init({"w": jnp.ones((8, 16))})

    References:
      Zhu et al., `APOLLO: SGD-like Memory, AdamW-level Performance
      <https://arxiv.org/abs/2412.05270>`_, 2024, algorithm 1.
    """
    require_choice("granularity", granularity, ("column", "matrix"))

    def replace(node: Subspace) -> Subspace:
        phi = jnp.sqrt(scale) * norm_ratio(node, granularity, eps)
        return node.replace(
            core=None, residual_scale=phi.astype(node.raw.dtype), residual_leak=None
        )

    return on_nodes(replace)


@on_any_mesh
def plain_residual(
    rule: Literal["sign", "sgd"] = "sign", scale: jax.typing.ArrayLike = 1.0
) -> optax.GradientTransformationExtraArgs:
    r"""Adds the residual by an optimizer that needs no state.

    .. math::

        U = c\,\alpha \left( P N + \lambda f(G - P R) \right), \qquad
        f = \mathrm{sign} \text{ or } f(x) = x

    Keeps no state. The sign needs the residual at full size; SGD does not.

    Args:
      rule: ``"sign"`` (signSGD, of the size of one of Adam's steps) or ``"sgd"``.
      scale: :math:`\lambda`, size of this part relative to the one in the subspace.

    Raises:
      ValueError: unknown ``rule``.

    Example:
      >>> import fira_jax, jax.numpy as jnp, optax
      >>> low_rank = fira_jax.LowRank(rank=2, scale=1.0)
      >>> tx = optax.chain(
      ...     fira_jax.low_rank_project(low_rank),
      ...     fira_jax.plain_residual("sgd"),
      ...     fira_jax.project_back(),
      ... )
      >>> grads = {"w": jnp.sin(jnp.arange(48.0)).reshape(6, 8)}
      >>> updates, _ = tx.update(grads, tx.init(grads))
      >>> bool(jnp.allclose(updates["w"], grads["w"], atol=1e-5))  # both parts together again
      True

    References:
      Zmushko et al., `FRUGAL <https://arxiv.org/abs/2411.07837>`_, 2024.
    """
    require_choice("rule", rule, ("sign", "sgd"))

    def add_residual(node: Subspace) -> Subspace:
        return node.replace(
            residual_scale=jnp.broadcast_to(node.scale * scale, node.raw_energy.shape),
            residual_leak=jnp.ones_like(node.scale),
            residual_map=jnp.sign if rule == "sign" else None,
        )

    return on_nodes(add_residual)


@on_any_mesh
def residual_over_denominator() -> optax.GradientTransformationExtraArgs:
    r"""Adds the residual, each entry divided as the optimizer divided the block that it is in.

    .. math::

        U = c\,\alpha \left( P N + (G - P R) / D \right)

    with :math:`D = \sqrt V + \epsilon` of the block's mean at all entries of the block. In terms of
    wavelets: the detail coefficients of all levels are divided by the denominator of the
    approximation coefficient above them. For ``LowRank(basis="haar")`` and an optimizer that tells
    its denominator (:func:`fira_jax.scale_by_adam_in_subspace`). Keeps no state.

    Raises:
      ValueError: at the first update, for another basis or optimizer.

    Example:
      >>> import fira_jax, jax.numpy as jnp, optax
      >>> low_rank = fira_jax.LowRank(rank=0.25, basis="haar")
      >>> tx = optax.chain(
      ...     fira_jax.low_rank_project(low_rank),
      ...     fira_jax.scale_by_adam_in_subspace(low_rank),
      ...     fira_jax.residual_over_denominator(),
      ...     fira_jax.project_back(),
      ... )
      >>> state = tx.init({"w": jnp.ones((8, 16))})

    References:
      Wen et al., `Gradient wavelet transform <https://arxiv.org/abs/2501.07237>`_, 2025.
    """

    def add_residual(node: Subspace) -> Subspace:
        if node.denominator is None:
            raise ValueError(
                "residual_over_denominator needs an optimizer that tells what it divided by, such "
                "as fira_jax.scale_by_adam_in_subspace"
            )
        if not hasattr(node.basis, "spread"):
            raise ValueError(
                "residual_over_denominator needs basis='haar', whose directions share no entry; "
                f"got {type(node.basis).__name__}"
            )
        return node.replace(
            residual_scale=node.scale / node.denominator, residual_leak=jnp.ones_like(node.scale)
        )

    return on_nodes(add_residual)


def norm_ratio(
    node: Subspace, granularity: Literal["column", "matrix"], eps: jax.typing.ArrayLike
) -> jax.Array:
    r"""How much the optimizer in the subspace stretched what it was given, ``[*batch, 1, b]``.

    :math:`\lVert N \rVert / (\lVert R \rVert + \epsilon)` of each column, or of the whole matrix.
    """
    assert node.core is not None
    after, before = column_energy(node.core), node.raw_energy
    if granularity == "matrix":
        after, before = (
            jnp.broadcast_to(jnp.sum(x, axis=-1, keepdims=True), x.shape) for x in (after, before)
        )
    return (root(after) / (root(before) + eps)).astype(node.raw.dtype)


def residual_norm(node: Subspace) -> jax.Array:
    r"""The norm :math:`\lVert s \circ f(G - \kappa P R) \rVert_F` of each matrix, ``[*batch]``."""
    assert node.residual_scale is not None
    weights = jnp.square(node.residual_scale)
    return root(jnp.einsum("...ib,...ib->...", weights, residual_energy(node)))


def residual(node: Subspace) -> jax.Array:
    r"""The full-size residual :math:`G - \kappa P R`, ``[*batch, m, n]``, at least float32.

    For methods that do something to its entries; all others expand it.
    """
    whole = jnp.where(node.usable, node.matrix, 0).astype(node.raw.dtype)
    if node.residual_leak is None:
        return whole
    return whole - node.view.lift(node.basis, node.residual_leak * node.raw)


def residual_energy(node: Subspace) -> jax.Array:
    r""":math:`\lVert f(g - \kappa P r) \rVert^2` of each column, ``[*batch, 1, b]``.

    From arrays that exist already. By columns, since :math:`P^\top g = r` whatever :math:`P` is,

    .. math::

        \lVert g - \kappa P r \rVert^2
        = \lVert g \rVert^2 - 2 \kappa \lVert r \rVert^2 + \kappa^2 \lVert P r \rVert^2

    and the last norm is :math:`\lVert r \rVert^2` for an orthonormal :math:`P`, else
    :math:`r^\top (P^\top P) r`. Where the residual is a tiny part of the gradient the difference
    cancels to noise of some 1e-3 of :math:`\lVert s \circ G \rVert` in float32, 1e-2 if the basis
    or the gradient is bfloat16. A column below counts as having no residual: a limiter that
    remembered noise (after a gradient of low rank) would hold down the next real residual for
    hundreds of steps. A square orthonormal basis leaves exactly :math:`(1 - \kappa) G`, which is
    used as it stands.
    """
    kappa, inside = node.residual_leak, node.raw_energy
    if node.residual_map is not None:
        columns = node.view.column_energy(node.residual_map(residual(node)))
    elif kappa is None:
        columns = node.energy
    elif node.orthonormal and node.view.rank == node.view.compressed_size:
        columns = jnp.square(1 - kappa) * inside
    else:
        lifted = inside
        if not node.orthonormal:
            gram = jnp.einsum(
                "...ar,...aq->...rq", node.basis, node.basis, preferred_element_type=inside.dtype
            )
            lifted = jnp.sum(node.raw * (gram @ node.raw), axis=-2, keepdims=True)
        whole = node.energy
        columns = whole - 2 * kappa * inside + jnp.square(kappa) * lifted
        # What is left by the basis's own rounding is no more a residual than that of the sums.
        rounding = max(jnp.finfo(x.dtype).eps for x in (node.basis, node.matrix))
        noise = max(32 * jnp.finfo(columns.dtype).eps, (2 * rounding) ** 2)
        columns = jnp.where(columns > noise * whole, columns, 0)
    return columns

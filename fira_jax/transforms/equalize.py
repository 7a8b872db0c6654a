"""The residual with all its columns brought to one size."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fira_jax import checks
from fira_jax.low_rank import LowRank
from fira_jax.matrix_view import MatrixView
from fira_jax.norms import root
from fira_jax.sharding.explicit import on_any_mesh
from fira_jax.subspace import Subspace
from fira_jax.transforms.residual import residual_energy
from fira_jax.trees import Params, on_nodes_with_state


class EqualizeResidualState(NamedTuple):
    """State of :func:`equalize_residual`.

    Attributes:
      energy: averages of each column's squared norm, float32 or wider ``[*batch, 1, b]``;
        ``optax.MaskedNode`` for parameters not projected.
    """

    energy: Any


@on_any_mesh
def equalize_residual(
    low_rank: LowRank, scale: jax.typing.ArrayLike = 0.4, decay: jax.typing.ArrayLike = 0.9
) -> optax.GradientTransformationExtraArgs:
    r"""Adds the residual, each column divided by its usual size.

    .. math::

        U = c\,\alpha \left( P N + \lambda \sqrt{a - r}\, (G - P R)\, \mathrm{diag}(p)^{-1/2}
        \right), \qquad
        p_j \leftarrow \beta p_j + (1 - \beta) \lVert (G - P R)_{:,j} \rVert^2

    The best scales of columns under the Fisher matrix's approximation by a subspace and a diagonal
    outside it: every entry of the residual gets a size of about one. The full-size residual is not
    formed. A column without a residual stays.

    Args:
      low_rank: what "low rank" means for this model.
      scale: :math:`\lambda`, size of this part relative to the one in the subspace.
      decay: :math:`\beta`; the average starts at zero and is not corrected for it.

    Example:
      >>> import fira_jax, jax.numpy as jnp, optax
      >>> low_rank = fira_jax.LowRank(rank=2)
      >>> tx = optax.chain(
      ...     fira_jax.low_rank_project(low_rank),
      ...     fira_jax.scale_by_adam_in_subspace(low_rank),
      ...     fira_jax.equalize_residual(low_rank),
      ...     fira_jax.norm_growth_limit(low_rank),
      ...     fira_jax.project_back(),
      ... )
      >>> state = tx.init({"w": jnp.ones((8, 16))})

    References:
      Gong et al., `Alice <https://arxiv.org/abs/2502.07752>`_, 2025, its "optimal compensation".
    """
    decay = checks.decay("decay", decay)

    def init(params: Params) -> EqualizeResidualState:
        def zeros(view: MatrixView, dtype: Any) -> jax.Array:
            shape = (*view.batch_shape, 1, view.long_size)
            return jnp.zeros(shape, jnp.promote_types(dtype, jnp.float32))

        return EqualizeResidualState(low_rank.for_each_matrix(params, zeros))

    def add_residual(node: Subspace, energy: jax.Array) -> tuple[Subspace, jax.Array]:
        wide, view = energy.dtype, node.view
        node = node.replace(residual_leak=jnp.ones_like(node.scale), residual_map=None)
        new = residual_energy(node)
        energy = jnp.asarray(decay, wide) * energy + jnp.asarray(1 - decay, wide) * new
        dimensions = view.compressed_size - view.rank
        size = root(energy / max(dimensions, 1))
        known = (new > 0) & (size > 0)
        s = jnp.where(known, node.scale * scale / jnp.where(known, size, 1), 0)
        return node.replace(residual_scale=s.astype(node.raw.dtype)), energy

    return on_nodes_with_state("equalize_residual", init, add_residual)

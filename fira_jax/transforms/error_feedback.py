"""What a projection misses is added to the next gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fira_jax.checks import decay
from fira_jax.dtypes import state_dtype
from fira_jax.low_rank import LowRank
from fira_jax.sharding.explicit import on_any_mesh
from fira_jax.transforms.project import LowRankProjectState, low_rank_project
from fira_jax.trees import Params, is_leaf, map_leaves, require_same_leaves, require_same_shape


class LowRankProjectWithFeedbackState(NamedTuple):
    """State of :func:`low_rank_project_with_feedback`.

    Attributes:
      project: state of the projection.
      error: what was missed so far, of the shape of each projected parameter;
        ``optax.MaskedNode`` for the others.
    """

    project: LowRankProjectState
    error: Any


@on_any_mesh
def low_rank_project_with_feedback(
    low_rank: LowRank, momentum: jax.typing.ArrayLike = 0.0
) -> optax.GradientTransformationExtraArgs:
    r"""Like :func:`fira_jax.low_rank_project`, of the gradient and all that was missed before.

    .. math::

        B = G + E, \qquad R = P^\top B, \qquad E \leftarrow B - (1 - \mu) P R

    With :math:`\mu = 0` the error is what the subspace does not hold (error feedback); otherwise a
    share of what it does hold stays, too, and :math:`E` is a momentum. It is as large as the
    weight: this is not in the memory class of the other methods.

    Args:
      low_rank: what "low rank" means for this model.
      momentum: :math:`\mu`.

    Returns:
      A gradient transformation; follow it with :func:`fira_jax.project_back`.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> project = fira_jax.low_rank_project_with_feedback(fira_jax.LowRank(rank=1))
      >>> grads = {"w": jnp.diag(jnp.array([2.0, 1.0]))}
      >>> _, state = project.update(grads, project.init(grads))
      >>> jnp.round(jnp.diag(state.error["w"]), 3).tolist()
      [0.0, 1.0]

    References:
      Ahn et al., `Dion <https://arxiv.org/abs/2504.05295>`_, 2025; Modoranu et al.
      (`arXiv 2505.17967 <https://arxiv.org/abs/2505.17967>`_), 2025. The error stays as it is where
      a gradient is not finite.
    """
    momentum = decay("momentum", momentum)
    project = low_rank_project(low_rank)

    def init(params: Params) -> LowRankProjectWithFeedbackState:
        error = low_rank.for_each_matrix(
            params, lambda view, dtype: jnp.zeros(view.shape, state_dtype(dtype))
        )
        return LowRankProjectWithFeedbackState(project.init(params), error)

    def update(
        updates: optax.Updates,
        state: LowRankProjectWithFeedbackState,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, LowRankProjectWithFeedbackState]:
        def miss(node: Any, error: Any) -> tuple[Any, Any]:
            held = node.view.lift(node.basis, (1 - momentum) * node.raw)
            missed = node.view.from_matrix(node.matrix - held).astype(error.dtype)
            usable = node.view.from_matrix(
                jnp.broadcast_to(node.usable, (*node.view.batch_shape, *node.view.matrix_shape))
            )
            return node, jnp.where(usable, missed, error)

        leaves, treedef = jax.tree.flatten(updates, is_leaf=is_leaf)
        errors = jax.tree.leaves(state.error, is_leaf=is_leaf)
        require_same_leaves(leaves, errors)
        whole = [_add(x, e) for x, e in zip(leaves, errors, strict=True)]
        nodes, project_state = project.update(
            jax.tree.unflatten(treedef, whole), state.project, params, **extra_args
        )
        _, error = map_leaves(miss, nodes, state.error)
        return nodes, LowRankProjectWithFeedbackState(project_state, error)

    return optax.GradientTransformationExtraArgs(init, update)


def _add(grad: Any, error: Any) -> Any:
    if isinstance(error, optax.MaskedNode):
        return grad
    require_same_shape(f"an update of shape {grad.shape}", grad.shape, error.shape)
    return grad + error

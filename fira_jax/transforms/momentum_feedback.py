"""What the subspace could not take comes back with the next gradient."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fira_jax.checks import decay
from fira_jax.dtypes import state_dtype
from fira_jax.low_rank import LowRank
from fira_jax.matrix_view import MatrixView
from fira_jax.sharding.explicit import on_any_mesh
from fira_jax.subspace import Subspace
from fira_jax.transforms.adam import AdamInSubspaceState, scale_by_adam_in_subspace
from fira_jax.transforms.coordinates import one_minus_power
from fira_jax.transforms.project import LowRankProjectState, low_rank_project
from fira_jax.trees import Params, is_leaf


class MomentumFeedbackState(NamedTuple):
    """State of :func:`momentum_feedback`.

    Attributes:
      project: the state of the way into the subspace.
      adam: the state of Adam in it.
      error: what is fed back, of the shape of each projected parameter; ``optax.MaskedNode`` for
        the others, ``()`` without feedback.
    """

    project: LowRankProjectState
    adam: AdamInSubspaceState
    error: Any


@on_any_mesh
def momentum_feedback(
    low_rank: LowRank,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    *,
    rho: jax.typing.ArrayLike = 0.9,
    error_feedback: bool = True,
    carry: Literal["raw", "central"] = "central",
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam in a subspace that is found from momentum, with the momentum's error fed back.

    :func:`fira_jax.low_rank_project` and :func:`fira_jax.scale_by_adam_in_subspace` in one, since
    each needs what the other knows: the basis comes from

    .. math::

        B = \rho P_{old} \hat M + (1 - \rho) A, \qquad A = G + E

    and :math:`E` is what the full-size momentum :math:`\beta_1 P_{old} M + (1 - \beta_1) A` loses
    by being taken into the new subspace, as a gradient:

    .. math::

        E \leftarrow A - P R + \frac{\beta_1}{1 - \beta_1} (P_{old} M - P T M),
        \qquad R = P^\top A, \quad T = P^\top P_{old}

    A gradient that is not finite leaves :math:`E` as it is.

    Args:
      low_rank: what "low rank" means for this model. Its basis stores vectors and its moments are
        carried.
      b1: :math:`\beta_1`, Adam's decay of the first moment.
      b2: Adam's decay of the second moment.
      eps: Adam's :math:`\epsilon`.
      rho: :math:`\rho`, weight of the momentum in what the basis is found from.
      error_feedback: whether there is an :math:`E`.
      carry: how the second moment turns, see :func:`fira_jax.scale_by_adam_in_subspace`.
      mu_dtype: dtype of the first moments.
      nu_dtype: dtype of the second moments.

    Returns:
      A gradient transformation; follow it with :func:`fira_jax.project_back`.

    Raises:
      ValueError: the moments are not carried.

    Example:
      >>> import fira_jax, jax.numpy as jnp, optax
      >>> low_rank = fira_jax.LowRank(
      ...     2, 1, scale=1.0, basis=fira_jax.basis.PowerIteration(), moments="carry"
      ... )
      >>> tx = optax.chain(fira_jax.momentum_feedback(low_rank), fira_jax.project_back())
      >>> tx.init({"w": jnp.ones((8, 16))})[0].error["w"].shape
      (8, 16)

    References:
      Robert et al., `LDAdam <https://arxiv.org/abs/2410.16103>`_, 2024.
    """
    if low_rank.moments != "carry":
        raise ValueError(
            f"momentum_feedback needs LowRank(moments='carry'), got {low_rank.moments!r}"
        )
    b1, rho = decay("b1", b1), decay("rho", rho)
    project = low_rank_project(low_rank)
    adam = scale_by_adam_in_subspace(
        low_rank,
        b1,
        b2,
        eps,
        bias_correction="inside",
        carry=carry,
        mu_dtype=mu_dtype,
        nu_dtype=nu_dtype,
    )

    def init(params: Params) -> MomentumFeedbackState:
        zeros = lambda view, dtype: jnp.zeros(view.shape, state_dtype(dtype))  # noqa: E731
        error = low_rank.for_each_matrix(params, zeros) if error_feedback else ()
        return MomentumFeedbackState(project.init(params), adam.init(params), error)

    def update(
        updates: optax.Updates,
        state: MomentumFeedbackState,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, MomentumFeedbackState]:
        del params, extra_args
        leaves, treedef = jax.tree.flatten(updates, is_leaf=is_leaf)
        bases, mus, errors = (
            jax.tree.leaves(tree, is_leaf=is_leaf)
            for tree in (state.project.bases, state.adam.mu, state.error)
        )
        correction = jnp.where(state.adam.count > 0, one_minus_power(b1, state.adam.count), 1)
        held = errors if error_feedback else [None] * len(leaves)
        plan = low_rank.leaves(updates)
        seen = {
            i: _wholes(leaf.view, leaves[i], bases[i], mus[i], held[i])
            for i, leaf in enumerate(plan)
            if leaf is not None and leaf.view is not None
        }
        accumulated, sources = list(leaves), list(leaves)
        for i, (momentum, whole) in seen.items():
            put_back = plan[i].view.from_matrix  # type: ignore[union-attr]
            sources[i] = put_back(_mixed(momentum, whole, rho, correction))
            accumulated[i] = put_back(whole).astype(leaves[i].dtype)

        nodes, project_state = project.update(
            jax.tree.unflatten(treedef, accumulated),
            state.project,
            basis_from=jax.tree.unflatten(treedef, sources),
        )
        if error_feedback:
            by_place = jax.tree.leaves(nodes, is_leaf=is_leaf)
            for i, both in seen.items():
                errors[i] = _lost(by_place[i], b1 / (1 - b1), mus[i], *both, errors[i])
        error = jax.tree.unflatten(jax.tree.structure(state.error, is_leaf=is_leaf), errors)
        updates, adam_state = adam.update(nodes, state.adam)
        return updates, MomentumFeedbackState(project_state, adam_state, error)

    return optax.GradientTransformationExtraArgs(init, update)


def _wholes(
    view: MatrixView, grad: jax.Array, basis: jax.Array, mu: jax.Array, error: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """The momentum, and the gradient with what was lost before, as matrices."""
    momentum = view.lift(basis, mu)
    whole = view.to_matrix(grad).astype(momentum.dtype)
    if error is not None:
        whole += view.to_matrix(error).astype(whole.dtype)
    return momentum, whole


def _mixed(
    momentum: jax.Array, whole: jax.Array, rho: jax.typing.ArrayLike, correction: jax.Array
) -> jax.Array:
    """What the basis is found from: the corrected momentum and the gradient."""
    weight = jnp.asarray(rho / correction, whole.dtype)
    return weight * momentum + jnp.asarray(1 - rho, whole.dtype) * whole


def _lost(
    node: Subspace,
    gain: jax.typing.ArrayLike,
    mu: jax.Array,
    momentum: jax.Array,
    whole: jax.Array,
    error: jax.Array,
) -> jax.Array:
    """What the new subspace holds neither of the gradient nor of the old momentum."""
    assert node.rotation is not None
    gain = jnp.asarray(gain, node.raw.dtype)
    taken = node.raw + gain * (node.rotation @ mu.astype(node.raw.dtype))
    lost = whole + gain * momentum - node.view.lift(node.basis, taken)
    before = node.view.to_matrix(error)
    return node.view.from_matrix(jnp.where(node.usable, lost.astype(before.dtype), before))

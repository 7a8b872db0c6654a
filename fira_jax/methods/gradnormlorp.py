"""GradNormLoRP: Adam on an r x r core of each normalized weight's direction."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers

from fira_jax.basis import Basis
from fira_jax.low_rank import LowRank
from fira_jax.plan import Side
from fira_jax.subspace import Subspace
from fira_jax.transforms.adam import scale_by_adam_in_subspace
from fira_jax.transforms.in_subspace import in_subspace
from fira_jax.transforms.project import low_rank_project, project_back
from fira_jax.transforms.weight_norm import weight_normalized
from fira_jax.trees import Params, is_leaf, map_leaves, stateless, unbox


def gradnormlorp(
    learning_rate: optax.ScalarOrSchedule,
    rank: int | float = 128,
    update_proj_gap: int = 250,
    scale: jax.typing.ArrayLike = 1.0,
    base_optimizer: optax.GradientTransformation | None = None,
    weight_decay: jax.typing.ArrayLike = 0.0,
    mask: Any = None,
    weight_dimension_numbers: Any = None,
    *,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-6,
    basis: str | Basis = "randomized",
    side: Side = "short",
    seed: jax.typing.ArrayLike = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""GradNormLoRP: normalized weights, the gradient of their direction projected on both sides.

    .. math::

        D_V = \alpha A N B^\top, \qquad N = \mathrm{Adam}(A^\top \nabla_V B)

    with :math:`A`, :math:`B` the leading singular vectors of :math:`\nabla_V` at a refresh;
    direction and magnitude of the weights move as :func:`fira_jax.transforms.weight_normalized`
    says, the latter by Adam. State: :math:`ar + br + 2r^2 + 2n` elements for a matrix with sides
    :math:`a \le b` and :math:`n` outputs. Parameters that are not projected get Adam.

    Args:
      learning_rate: a scalar or a schedule.
      rank: of both projections. Static.
      update_proj_gap: steps between refreshes of both bases. Static.
      scale: :math:`\alpha`.
      base_optimizer: replaces Adam on the cores and on parameters that are not projected (not on
        magnitudes); any Optax transformation without a learning rate.
      weight_decay: decoupled, as in ``optax.adamw``.
      mask: which parameters decay, as in ``optax.add_decayed_weights``.
      weight_dimension_numbers: which parameters are projected and along which axes, see
        :class:`fira_jax.LowRank`.
      b1: Adam's decay of the first moment.
      b2: Adam's decay of the second moment.
      eps: Adam's :math:`\epsilon`.
      basis: see :class:`fira_jax.LowRank`.
      side: which side is projected first, see :class:`fira_jax.LowRank`.
      seed: see :class:`fira_jax.LowRank`.

    Raises:
      TypeError: ``rank`` or ``update_proj_gap`` is not a static number.
      ValueError: an argument is out of range or, at ``init``, does not fit a parameter.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> tx = fira_jax.gradnormlorp(1e-2, rank=2)
      >>> fira_jax.describe(tx, {"w": jnp.ones((8, 16))}).rows[0].state_bytes
      352

    References:
      Huang et al., `Gradient Weight-normalized Low-rank Projection for Efficient LLM Training
      <https://arxiv.org/abs/2412.19616>`_, 2024. Our reading of the paper, unverified (its axis of
      normalization is taken to be the input's): the released code projects one side, resets the
      magnitudes at every step and so amounts to GaLore with more state. Entries of a core below 512
      units of rounding of its largest count as zero, which neither says: at a refresh they are
      nothing but rounding, and Adam's first step would be as long for them as for any.
    """
    low_rank = LowRank(
        rank,
        update_proj_gap,
        scale,
        basis=basis,
        side=side,
        weight_dimension_numbers=weight_dimension_numbers,
        seed=seed,
    )
    direction = optax.chain(
        low_rank_project(low_rank),
        _on_cores(low_rank, base_optimizer, b1, b2, eps),
        project_back(),
    )
    decay = optax.add_decayed_weights(weight_decay, mask)
    return optax.chain(
        weight_normalized(low_rank, learning_rate, direction, optax.scale_by_adam(b1, b2, eps)),
        _afterwards(optax.chain(decay, optax.scale_by_learning_rate(learning_rate))),
    )


def _on_cores(
    low_rank: LowRank, base_optimizer: Any, b1: Any, b2: Any, eps: Any
) -> optax.GradientTransformationExtraArgs:
    """The same walk once more, with coordinates ``[*batch, r, b]`` along the side that is left."""

    def inside(leaves: Any) -> optax.GradientTransformationExtraArgs:
        def numbers(leaf: Any) -> Any:
            return MuonDimensionNumbers(-2, -1) if isinstance(leaf, Subspace) else None

        cores = dataclasses.replace(
            low_rank,
            scale=1.0,
            side="long",
            weight_dimension_numbers=jax.tree.map(numbers, leaves, is_leaf=is_leaf),
        )
        if base_optimizer is None:
            adam = scale_by_adam_in_subspace(cores, b1, b2, eps)
        else:
            adam = in_subspace(cores, base_optimizer)
        walk = optax.chain(low_rank_project(cores), _without_rounding(), adam, project_back())
        return in_subspace(low_rank, walk)

    def init(params: Params) -> optax.OptState:
        project = low_rank_project(low_rank)
        nodes = jax.eval_shape(lambda x: project.update(x, project.init(x))[0], unbox(params))
        return inside(nodes).init(params)

    def update(
        updates: optax.Updates, state: optax.OptState, params: Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        return inside(updates).update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(init, update)


def _without_rounding() -> optax.GradientTransformationExtraArgs:
    """Sets entries of a core that are below 512 units of rounding of its largest one to zero.

    At a refresh a core is diagonal, both bases being singular vectors of one matrix. Adam's first
    step would blow up whatever noise stands beside the diagonal to the size of what stands on it.
    """

    def clear(leaf: Any) -> Any:
        if not isinstance(leaf, Subspace):
            return leaf
        size = jnp.abs(leaf.raw)
        noise = 512 * jnp.finfo(size.dtype).eps * jnp.max(size, axis=(-2, -1), keepdims=True)
        return leaf.replace(raw=jnp.where(size > noise, leaf.raw, 0))

    return stateless(lambda updates: map_leaves(clear, updates))


def _afterwards(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Adds to updates what ``tx`` makes of none."""

    def update(
        updates: optax.Updates, state: optax.OptState, params: Params | None = None, **_: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        more, state = tx.update(jax.tree.map(jnp.zeros_like, updates), state, params)
        return jax.tree.map(jnp.add, updates, more), state

    return optax.GradientTransformationExtraArgs(tx.init, update)

"""Any Optax transformation, inside the subspace."""

from __future__ import annotations

from typing import Any

import optax

from fira_jax.dtypes import state_dtype, steady
from fira_jax.low_rank import LowRank
from fira_jax.sharding.explicit import on_any_mesh
from fira_jax.subspace import Subspace
from fira_jax.transforms.coordinates import coordinates_like
from fira_jax.trees import Params, map_leaves, unbox


@on_any_mesh
def in_subspace(
    low_rank: LowRank, inner: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """Lifts any Optax transformation into the subspace.

    ``inner`` sees each projected gradient as its coordinates ``[*batch, r, b]`` in the
    parameter's dtype (float32 if that is float16), other gradients as they are, and parameters
    projected likewise. Its state keeps its dtypes.

    Args:
      low_rank: what "low rank" means for this model.
      inner: the transformation, such as ``optax.scale_by_lion()``.

    Raises:
      ValueError: ``low_rank.moments`` is not ``"keep"``: which of ``inner``'s states are moments,
        and how they turn with the basis, is not known.

    Example:
      >>> import fira_jax, jax.numpy as jnp, optax
      >>> low_rank = fira_jax.LowRank(rank=2)
      >>> tx = optax.chain(
      ...     fira_jax.low_rank_project(low_rank),
      ...     fira_jax.in_subspace(low_rank, optax.scale_by_lion()),
      ...     fira_jax.project_back(),
      ...     optax.scale_by_learning_rate(1e-3),
      ... )
      >>> state = tx.init({"w": jnp.ones((8, 16))})
    """
    if low_rank.moments != "keep":
        raise ValueError(
            f"moments={low_rank.moments!r} needs fira_jax.scale_by_adam_in_subspace: in_subspace "
            "cannot know what of an arbitrary transformation's state belongs to the basis, and how"
        )
    inner = steady(inner)

    def init(params: Params) -> optax.OptState:
        return inner.init(coordinates_like(low_rank, params, None))

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        def coordinates(leaf: Any) -> Any:
            if isinstance(leaf, Subspace):
                return leaf.raw.astype(state_dtype(leaf.matrix.dtype))
            return leaf if leaf.size else optax.MaskedNode()

        def project(leaf: Any, param: Any) -> tuple[Any, Any]:
            if not isinstance(leaf, Subspace):
                return leaf, param if leaf.size else optax.MaskedNode()
            seen = leaf.view.project(leaf.basis, leaf.view.to_matrix(param))
            return leaf, seen.astype(state_dtype(param.dtype))

        def put_back(leaf: Any, core: Any) -> tuple[Any, Any]:
            if not isinstance(leaf, Subspace):
                return core, core
            return leaf.replace(core=core.astype(leaf.raw.dtype)), core

        if params is not None:
            params = map_leaves(project, unbox(updates), unbox(params))[1]
        cores, state = inner.update(
            map_leaves(coordinates, unbox(updates)), state, params, **extra_args
        )
        return map_leaves(put_back, updates, cores)[0], state

    return optax.GradientTransformationExtraArgs(init, update)

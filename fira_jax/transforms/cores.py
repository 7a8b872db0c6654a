"""Both sides of a matrix projected: inside the walk, the same walk once more."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers

from fira_jax.low_rank import LowRank
from fira_jax.subspace import Subspace
from fira_jax.transforms.in_subspace import in_subspace
from fira_jax.transforms.project import low_rank_project, project_back
from fira_jax.trees import Params, is_leaf, on_nodes, unbox


def on_cores(
    low_rank: LowRank, optimizer: Callable[[LowRank], optax.GradientTransformation]
) -> optax.GradientTransformationExtraArgs:
    """Projects the coordinates ``[*batch, r, b]`` once more, along the side that is left.

    Args:
      low_rank: what "low rank" means for this model; the second projection has the same rank.
      optimizer: from what "low rank" means for the coordinates to what runs on their cores
        ``[*batch, r, r]``.
    """

    def inside(leaves: Any) -> optax.GradientTransformationExtraArgs:
        def numbers(leaf: Any) -> Any:
            return MuonDimensionNumbers(-2, -1) if isinstance(leaf, Subspace) else None

        cores = dataclasses.replace(
            low_rank,
            scale=1.0,
            side="long",
            weight_dimension_numbers=jax.tree.map(numbers, leaves, is_leaf=is_leaf),
        )
        walk = optax.chain(
            low_rank_project(cores), clear_rounding(), optimizer(cores), project_back()
        )
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


def clear_rounding() -> optax.GradientTransformationExtraArgs:
    """Sets entries of a core that are below 512 units of rounding of its largest one to zero.

    At a refresh a core is diagonal, both bases being singular vectors of one matrix. Adam's first
    step would blow up whatever noise stands beside the diagonal to the size of what stands on it.
    """

    def clear(leaf: Subspace) -> Subspace:
        size = jnp.abs(leaf.raw)
        noise = 512 * jnp.finfo(size.dtype).eps * jnp.max(size, axis=(-2, -1), keepdims=True)
        return leaf.replace(raw=jnp.where(size > noise, leaf.raw, 0))

    return on_nodes(clear)

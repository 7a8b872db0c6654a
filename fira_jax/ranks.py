"""Between two compiled programs: a state of another rank."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fira_jax.state_owners import Owned, owned_state
from fira_jax.trees import Params


def active_ranks(tx: optax.GradientTransformation, state: optax.OptState, params: Params) -> Any:
    """How many basis vectors of each projected parameter are in use.

    Reads the bases, so call it outside of any jit.

    Args:
      tx: the transformation, with a basis like :class:`fira_jax.basis.Adaptive` that stores unused
        vectors as zeros.
      state: its state.
      params: parameters, arrays or abstract.

    Returns:
      A dict from paths to ranks, at least 1; of a stack the largest. What a
      :class:`fira_jax.LowRank` takes as ``rank``.

    Example:
      >>> import fira_jax, jax, jax.numpy as jnp
      >>> tx = fira_jax.adarankgrad(1e-2, rank=8)
      >>> grads = {"w": jnp.outer(jnp.arange(16.0), jnp.arange(32.0))}
      >>> _, state = jax.jit(tx.update)(grads, tx.init(grads), grads)
      >>> fira_jax.active_ranks(tx, state, grads)
      {'w': 1}
    """
    _, owned, _ = owned_state(tx, params)
    ranks = {}
    for item, array in zip(owned, jax.tree.leaves(state), strict=True):
        view = item.owner.view if item.owner else None
        if item.owner is None or view is None or not item.basis:
            continue
        if array.shape == (*view.batch_shape, view.compressed_size, view.rank):
            used = jnp.max(jnp.sum(jnp.any(array != 0, axis=-2), axis=-1))
            ranks[item.owner.path] = max(int(used), 1)
    return ranks


def resize_state(
    tx: optax.GradientTransformation, state: optax.OptState, params: Params
) -> optax.OptState:
    """A state made at another rank, cut down or filled up with zeros to the rank of ``tx``.

    The first vectors stay. Nothing is lost if the others are not in use (:func:`active_ranks`) and
    the moments are carried, which leaves theirs zero. The arrays are new and as small as the rank
    says; what was compiled for the old ones compiles again.

    Args:
      tx: the transformation that goes on, alike but for its ranks.
      state: the state to resize.
      params: parameters, arrays or abstract.

    Returns:
      A state for ``tx``.

    Raises:
      ValueError: the state is not one of such a transformation.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> params = {"w": jnp.ones((16, 32))}
      >>> state = fira_jax.adarankgrad(1e-2, rank=8).init(params)
      >>> tx = fira_jax.adarankgrad(1e-2, rank={"w": 3})
      >>> state = fira_jax.resize_state(tx, state, params)
      >>> state[0].bases["w"].shape, state[1].mu["w"].shape
      ((16, 3), (3, 32))
    """
    _, owned, treedef = owned_state(tx, params)
    if treedef != jax.tree.structure(state):
        raise ValueError(
            "resize_state needs a state of the same transformation but for its ranks; expected "
            f"{treedef}, got {jax.tree.structure(state)}"
        )

    def fit(x: jax.Array, item: Owned) -> jax.Array:
        target, view = item.array.shape, item.owner.view if item.owner else None
        differing = [new for old, new in zip(x.shape, target, strict=False) if old != new]
        if x.ndim != len(target) or differing not in ([], [view.rank if view else None]):
            raise ValueError(
                f"the state's {item.path} has shape {x.shape}, which does not become "
                f"{target} by another rank"
            )
        kept = x[tuple(slice(size) for size in target)]
        return jnp.zeros(target, x.dtype).at[tuple(map(slice, kept.shape))].set(kept)

    return jax.tree.unflatten(treedef, map(fit, jax.tree.leaves(state), owned))

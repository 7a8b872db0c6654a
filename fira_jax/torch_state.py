"""Goes on with what a PyTorch optimizer has learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fira_jax.matrix_view import MatrixView
from fira_jax.plan import Leaf
from fira_jax.state_owners import owned_state
from fira_jax.transforms.adam import AdamInSubspaceState
from fira_jax.transforms.limiter import NormGrowthLimitState
from fira_jax.transforms.project import LowRankProjectState
from fira_jax.trees import Params, is_leaf, unbox

Entry = Mapping[str, Any]
"""What a PyTorch optimizer keeps for one parameter, by its own names."""


def from_torch(
    tx: optax.GradientTransformation,
    params: Params,
    states: Mapping[str, Entry | Sequence[Entry]],
    *,
    limiter_scale: float = 1.0,
) -> optax.OptState:
    """The state of ``tx`` that a released PyTorch optimizer has arrived at.

    Takes what ``optimizer.state_dict()["state"]`` of ``fira.FiraAdamW``,
    ``galore_torch.GaLoreAdamW`` and ``apollo_torch.APOLLOAdamW`` holds, as NumPy arrays. Nothing is
    unpickled and nothing of PyTorch imported; the few lines that read the arrays off an optimizer
    are in the guide "Moving over from PyTorch".

    Args:
      tx: :func:`fira_jax.fira`, :func:`fira_jax.galore` or :func:`fira_jax.apollo` with the
        arguments that correspond, also inside other transformations; with ``basis="svd"``.
        (A basis that is not stored, such as APOLLO's random one, starts anew, as it does at every
        refresh.)
      params: the parameters, arrays or abstract.
      states: for the path of each parameter (``layers/attn/q/kernel``) a mapping with ``step``,
        ``exp_avg``, ``exp_avg_sq`` and, if it is projected, ``ortho_matrix``; ``scaling_grad`` or
        ``scaled_grad`` is what the limiter remembers. Projected matrices are laid out as in
        PyTorch, ``(out, in)``, whatever the parameter's layout is; moments of the others as the
        parameter is. For a stack of matrices, a sequence of such mappings in the order of the
        stack.

      limiter_scale: what the norms that the limiter remembers are multiplied by. APOLLO without
        ``scale_front`` limits before it scales, so there it is the root of ``scale``.

    Returns:
      The state; counters, also those of schedules, are at ``step``.

    Raises:
      ValueError: naming the parameter, if an entry is missing, has arrays of another shape or has
        been updated more or less often than others.

    Example:
      >>> import fira_jax, jax.numpy as jnp, numpy as np
      >>> tx = fira_jax.galore(1e-2, rank=2, basis="svd")
      >>> entry = {
      ...     "step": 7,
      ...     "exp_avg": np.ones((16, 2)),  # of a weight of 16 outputs and 8 inputs
      ...     "exp_avg_sq": np.ones((16, 2)),
      ...     "ortho_matrix": np.eye(2, 8),
      ... }
      >>> state = fira_jax.from_torch(tx, {"w": jnp.zeros((8, 16))}, {"w": entry})
      >>> state[0].bases["w"].shape, state[1].mu["w"].shape, int(state[1].count)
      ((8, 2), (2, 16), 7)
    """
    params = unbox(params)
    leaves = owned_state(tx, params)[0]
    entries = {leaf.path: _entries(leaf, states) for leaf in leaves}
    steps = {path: {int(e["step"]) for e in several} for path, several in entries.items()}
    every = set().union(*steps.values())
    if len(every) != 1:
        raise ValueError(f"all parameters must have been updated equally often, got {steps}")

    def learnt(node: Any) -> Any:
        def of(tree: Any, *names: str) -> Any:
            return _tree(tree, leaves, entries, names)

        if isinstance(node, LowRankProjectState):
            return node._replace(bases=of(node.bases, "ortho_matrix"))
        if isinstance(node, AdamInSubspaceState):
            return node._replace(mu=of(node.mu, "exp_avg"), nu=of(node.nu, "exp_avg_sq"))
        if isinstance(node, NormGrowthLimitState):
            norms = of(node.previous, "scaling_grad", "scaled_grad")
            return node._replace(previous=jax.tree.map(lambda x: limiter_scale * x, norms))
        return node

    known = (LowRankProjectState, AdamInSubspaceState, NormGrowthLimitState)
    state = jax.tree.map(learnt, tx.init(params), is_leaf=lambda x: isinstance(x, known))
    return optax.tree.set(state, count=jnp.asarray(every.pop(), jnp.int32))


def _entries(leaf: Leaf, states: Mapping[str, Any]) -> list[Entry]:
    """What there is for each matrix of a parameter, or for the parameter."""
    if leaf.path not in states:
        raise ValueError(f"no state for parameter '{leaf.path}', only for: {', '.join(states)}")
    found = states[leaf.path]
    several = [found] if isinstance(found, Mapping) else list(found)
    count = int(np.prod(leaf.view.batch_shape)) if leaf.view else 1
    if len(several) != count:
        raise ValueError(
            f"parameter '{leaf.path}' with shape {leaf.shape} consists of {count} matrices, got "
            f"{len(several)} states"
        )
    return several


def _tree(
    tree: Any, leaves: Sequence[Leaf], entries: Mapping[str, list[Entry]], names: Sequence[str]
) -> Any:
    """A tree of the state, filled with what goes by one of these names in PyTorch."""
    arrays, structure = jax.tree.flatten(tree, is_leaf=is_leaf)
    filled = []
    for leaf, old in zip(leaves, arrays, strict=True):
        if isinstance(old, optax.MaskedNode):
            filled.append(old)
            continue
        parts = [_value(leaf, entry, names) for entry in entries[leaf.path]]
        if leaf.view is not None:
            parts = [_canonical(leaf.view, part) for part in parts]
            parts = [np.stack(parts).reshape((*leaf.view.batch_shape, *parts[0].shape))]
        if parts[0].shape != old.shape:
            raise ValueError(
                f"{names[0]} of parameter '{leaf.path}' with shape {leaf.shape} must have the "
                f"shape {old.shape} in our layout, got {parts[0].shape}"
            )
        filled.append(jnp.asarray(parts[0], old.dtype))
    return jax.tree.unflatten(structure, filled)


def _value(leaf: Leaf, entry: Entry, names: Sequence[str]) -> np.ndarray:
    for name in names:
        if name in entry:
            return np.asarray(entry[name])
    raise ValueError(f"the state of parameter '{leaf.path}' lacks '{names[0]}', got {list(entry)}")


def _canonical(view: MatrixView, array: np.ndarray) -> np.ndarray:
    """From PyTorch's orientation, ``(out, in)``, to ours: moments ``[r, b]``, a basis ``[a, r]``.

    Where the input is compressed PyTorch has moments ``[out, r]`` and a basis ``[r, in]``.
    """
    return array.T if view.compress_input else array

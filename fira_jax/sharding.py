"""Shardings of the optimizer's state, from those of the parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fira_jax.low_rank import Leaf
from fira_jax.ownership import Owned, owned_state
from fira_jax.subspace import Params, unbox

Axes = tuple[str, ...]
"""The mesh axes that split one dimension of an array."""


def state_shardings(
    tx: optax.GradientTransformation, params: Params, param_shardings: Any
) -> optax.OptState:
    """The shardings that ``tx.init(params)`` should have.

    A basis ``[*batch, a, r]`` is split along ``a`` and moments ``[*batch, r, b]`` along ``b`` as
    the parameter is, batch axes likewise; the rank is never split. The mesh axes that split the
    parameter's other dimension split the same one of these further, so that nothing stays whole
    which the parameter's devices could share: a step then gathers at most ``r * a`` numbers of the
    basis, and sums of coordinates become reduce-scatters. A dimension that the mesh axes do not
    divide is split by fewer of them.

    Args:
      tx: a transformation that contains pieces of this library.
      params: parameters, as arrays or as ``jax.ShapeDtypeStruct``.
      param_shardings: a ``jax.sharding.NamedSharding`` for each parameter, all on one mesh.

    Returns:
      A tree like ``tx.init(params)`` with a ``NamedSharding`` for each array, to be given to
      ``jax.jit(tx.init, out_shardings=...)``, ``jax.device_put`` or a checkpoint's restore.

    Raises:
      ValueError: there is not one ``NamedSharding`` for each parameter.

    Example:
      >>> import fira_jax, jax, jax.numpy as jnp
      >>> from jax.sharding import Mesh, NamedSharding, PartitionSpec
      >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> params = {"w": jax.ShapeDtypeStruct((64, 256), jnp.float32)}
      >>> shardings = {"w": NamedSharding(mesh, PartitionSpec("data", None))}
      >>> tx = fira_jax.fira(1e-2, rank=8)
      >>> state = fira_jax.state_shardings(tx, params, shardings)
      >>> tuple(state[0].bases["w"].spec), tuple(state[1].mu["w"].spec)
      (('data', None), (None, 'data'))
    """
    parameters, owned, treedef = owned_state(tx, params)
    shardings = jax.tree.leaves(unbox(param_shardings))
    if len(shardings) != len(parameters):
        raise ValueError(
            f"param_shardings has {len(shardings)} entries for {len(parameters)} parameters"
        )
    for leaf, sharding in zip(parameters, shardings, strict=True):
        if not isinstance(sharding, NamedSharding):
            raise ValueError(
                f"parameter '{leaf.path}' with shape {leaf.shape}: expected a NamedSharding, "
                f"got {sharding!r}"
            )
    by_path = {leaf.path: s for leaf, s in zip(parameters, shardings, strict=True)}
    if not shardings:
        return jax.tree.unflatten(treedef, [None] * len(owned))
    mesh = shardings[0].mesh

    def one(item: Owned) -> NamedSharding:
        if item.owner is None:
            return NamedSharding(mesh, PartitionSpec())
        dims = _dimensions(item, item.owner, _split(by_path[item.owner.path], item.owner.shape))
        kept = [
            _dividing(mesh, size, axes) for size, axes in zip(item.array.shape, dims, strict=True)
        ]
        spec = [axes[0] if len(axes) == 1 else axes or None for axes in kept]
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.unflatten(treedef, [one(item) for item in owned])


def _dividing(mesh: Mesh, size: int, axes: Axes) -> Axes:
    """As many leading mesh axes as divide ``size`` together."""
    while size % math.prod(mesh.shape[name] for name in axes):
        axes = axes[:-1]
    return axes


def _split(sharding: NamedSharding, shape: Sequence[int]) -> list[Axes]:
    """The mesh axes of every dimension of a parameter."""
    entries = [*sharding.spec, *[None] * (len(shape) - len(sharding.spec))]
    return [() if e is None else (e,) if isinstance(e, str) else tuple(e) for e in entries]


def _dimensions(item: Owned, leaf: Leaf, split: list[Axes]) -> list[Axes]:
    """The mesh axes of every dimension of an array of the state."""
    shape, view = item.array.shape, leaf.view
    if view is None:
        return split if shape == leaf.shape else [()] * len(shape)
    batch = [split[i] for i in view.batch_axes]
    m, n = (_merged(split, axes) for axes in (view.input_axes, view.output_axes))
    a, b = (m, n) if view.compress_input else (n, m)
    if "bases" in item.keys:
        per_matrix = [a + b, ()] if len(shape) == len(batch) + 2 else [()]
    elif shape == (*view.batch_shape, view.rank, view.long_size):
        per_matrix = [(), b + a]
    elif shape == leaf.shape:
        return split
    else:
        per_matrix = [()] * (len(shape) - len(batch))
    return [*batch[: len(shape)], *per_matrix]


def _merged(split: list[Axes], axes: Sequence[int]) -> Axes:
    """The mesh axes of several dimensions read as one; only the first may be split."""
    first, *others = (split[i] for i in axes)
    return () if any(others) else first

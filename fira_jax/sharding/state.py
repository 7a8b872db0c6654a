"""Shardings of the optimizer's state, from those of the parameters."""

from __future__ import annotations

from typing import Any

import jax
import optax
from jax.sharding import NamedSharding, PartitionSpec

from fira_jax.mesh_axes import axes_of, spec
from fira_jax.sharding.split import Split
from fira_jax.state_owners import Owned, owned_state
from fira_jax.trees import Params, unbox


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
      >>> from jax.sharding import NamedSharding, PartitionSpec
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
    by_keys = {leaf.keys: s for leaf, s in zip(parameters, shardings, strict=True)}
    if not shardings:
        return jax.tree.unflatten(treedef, [None] * len(owned))
    mesh = shardings[0].mesh

    def one(item: Owned) -> NamedSharding:
        if item.owner is None:
            return NamedSharding(mesh, PartitionSpec())
        shape, leaf = item.array.shape, item.owner
        axes, view = axes_of(by_keys[leaf.keys].spec, len(leaf.shape)), leaf.view
        basis = item.basis
        if view and (basis or shape != leaf.shape or shape[-2:] == (view.rank, view.long_size)):
            axes = Split.of_array(view, axes).part(view, shape, basis=basis)
        else:  # a window of past gradients has the parameter's axes last
            extra = len(shape) - len(leaf.shape)
            same = shape[extra:] == leaf.shape
            axes = [()] * extra + axes if same else [()] * len(shape)
        return NamedSharding(mesh, spec(mesh, shape, axes))

    return jax.tree.unflatten(treedef, [one(item) for item in owned])

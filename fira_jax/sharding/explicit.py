"""Lets a transformation run on meshes with explicit axes, where every array's type has a sharding.

Inside a piece the compiler is left to spread the work, as on a mesh with automatic axes; what goes
in and what comes out has the shardings that :func:`fira_jax.state_shardings` documents.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ParamSpec

import jax
import optax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from fira_jax.low_rank import LowRank
from fira_jax.mesh_axes import axes_of, spec
from fira_jax.sharding.split import Split
from fira_jax.sharding.state import state_shardings
from fira_jax.subspace import Subspace
from fira_jax.trees import Params, is_leaf, unbox

Arguments = ParamSpec("Arguments")
AnyMesh = Mesh | AbstractMesh
Make = Callable[Arguments, optax.GradientTransformationExtraArgs]


def on_any_mesh(make: Make[Arguments]) -> Make[Arguments]:
    """Decorates a function that makes a transformation, so that it runs on explicit meshes too.

    There the transformation is made again inside each update, with the arguments that are arrays
    (``optax.inject_hyperparams`` makes such) as that region of the program sees them. Without an
    explicit mesh nothing is added.

    Args:
      make: function that returns a gradient transformation over arrays and
        :class:`fira_jax.Subspace` nodes; its ``init`` depends on the parameters' shapes only.
    """

    @functools.wraps(make)
    def made(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Any:
        plain = make(*args, **kwargs)

        def init(params: Params) -> optax.OptState:
            state = plain.init(params)
            params = unbox(params)
            if _explicit_mesh(params) is None:
                return state
            shardings = state_shardings(plain, params, jax.tree.map(_sharding, params))
            return jax.tree.map(jax.sharding.reshard, state, shardings)

        def update(
            updates: optax.Updates,
            state: optax.OptState,
            params: Params | None = None,
            **extra_args: Any,
        ) -> tuple[optax.Updates, optax.OptState]:
            mesh = _explicit_mesh(updates)
            if mesh is None:
                return plain.update(updates, state, params, **extra_args)
            with jax.sharding.use_abstract_mesh(_automatic(mesh)):
                again = make(*_automatic_arrays(args), **_automatic_arrays(kwargs))
                inside = _automatic_arrays((updates, state, params, extra_args))
                new_updates, new_state = again.update(*inside[:3], **inside[3])
            leaves, treedef = jax.tree.flatten(new_updates, is_leaf=is_leaf)
            before = jax.tree.leaves(updates, is_leaf=is_leaf)
            leaves = [_place(x, old, mesh) for x, old in zip(leaves, before, strict=True)]
            new_state = jax.tree.map(lambda x, old: _reshard(x, mesh, _spec(old)), new_state, state)
            return jax.tree.unflatten(treedef, leaves), new_state

        return optax.GradientTransformationExtraArgs(init, update)

    return made


def _place(new: Any, old: Any, mesh: AnyMesh) -> Any:
    """An update with the sharding that follows from that of the update it was made of."""
    if isinstance(new, optax.MaskedNode):
        return new
    if isinstance(old, Subspace):
        matrix = axes_of(_spec(old.matrix), old.matrix.ndim)
        split = Split(tuple(matrix[:-2]), *matrix[-2:])
    elif isinstance(new, Subspace):
        split = Split.of_array(new.view, axes_of(_spec(old), old.ndim))
    else:
        return _reshard(new, mesh, _spec(old))
    if isinstance(new, Subspace):
        return jax.tree.map(lambda x, s: _reshard(x, mesh, s), new, split.node(new, mesh))
    return _reshard(new, mesh, spec(mesh, new.shape, split.array(old.view)))


def _reshard(x: jax.Array, mesh: AnyMesh, spec: PartitionSpec) -> jax.Array:
    return jax.sharding.reshard(x, NamedSharding(mesh, spec))


def _sharding(x: Any) -> Any:
    """As the type has it, but on the devices themselves where they are known."""
    # A tracer knows its type only. Asked for an attribute it lacks, it searches all of the program
    # traced so far for what to say about itself: a time that grows with the square of the model.
    known = None if isinstance(x, jax.core.Tracer) else getattr(x, "sharding", None)
    return known if isinstance(known, NamedSharding) else jax.typeof(x).sharding


def _spec(x: Any) -> PartitionSpec:
    return jax.typeof(x).sharding.spec


def _explicit_mesh(tree: Any) -> AnyMesh | None:
    """The mesh of the first array whose type has one with explicit axes."""
    for x in jax.tree.leaves(tree):
        sharding = _sharding(x) if hasattr(x, "dtype") else None
        if isinstance(sharding, NamedSharding) and AxisType.Explicit in sharding.mesh.axis_types:
            return sharding.mesh
    return None


def _automatic(mesh: AnyMesh) -> AbstractMesh:
    explicit = [
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Explicit
    ]
    return mesh.abstract_mesh.update_axis_types(dict.fromkeys(explicit, AxisType.Auto))


def _automatic_arrays(tree: Any) -> Any:
    """The same with every array of an explicit mesh left to the compiler."""

    def left(x: Any) -> Any:
        if isinstance(x, LowRank):
            fields = {f.name: getattr(x, f.name) for f in dataclasses.fields(x) if f.init}
            return dataclasses.replace(x, **{k: left(v) for k, v in fields.items()})
        if not isinstance(x, jax.Array) or _explicit_mesh(x) is None:
            return x
        everywhere = PartitionSpec(*[None] * x.ndim)
        return jax.sharding.reshard(x, everywhere)

    return jax.tree.map(left, tree)

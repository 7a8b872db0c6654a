"""What needs whole matrices, on a mesh: each goes to a device of its own, and none is gathered."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import with_sharding_constraint
from jax.sharding import AbstractMesh

from fira_jax.mesh_axes import known_mesh, spec
from fira_jax.trees import traced_once

Function = Callable[[jax.Array], jax.Array]
"""``[*batch, m, n] -> [*batch, m, n]``, of each matrix apart from the others."""


def in_parts(x: jax.Array) -> jax.Array:
    """Matrices ``[k, m, n]``, the longer side of each split over all devices of a known mesh.

    Left to choose a way from matrices that are split differently, or from two split sides to whole
    matrices, the compiler gathers them. From here, and to here, it does not.
    """
    mesh = known_mesh()
    if mesh is None:
        return x
    names, (m, n) = mesh.axis_names, x.shape[-2:]
    sides = [(), names] if m <= n else [names, ()]
    return with_sharding_constraint(x, spec(mesh, x.shape, [(), *sides]))


def on_whole_matrices(function: Function, arrays: Sequence[jax.Array]) -> list[jax.Array]:
    """``function`` of each array ``[*batch, m, n]``.

    On a known mesh every device is dealt matrices of its own, by all-to-alls; elsewhere the
    compiler chooses, and may give every device all of them.
    """
    mesh = known_mesh()
    if mesh is None:
        return list(map(traced_once(function, arrays), arrays))
    alike: dict[Any, list[int]] = defaultdict(list)
    for i, x in enumerate(arrays):
        alike[x.shape[-2:], x.dtype].append(i)
    done: dict[int, jax.Array] = {}
    for places in alike.values():
        results = _dealt_out(function, [arrays[i] for i in places], mesh)
        done |= dict(zip(places, results, strict=True))
    return [done[i] for i in range(len(arrays))]


def _dealt_out(
    function: Function, arrays: Sequence[jax.Array], mesh: AbstractMesh
) -> list[jax.Array]:
    """The same for matrices of one shape; zeros fill up the last round."""

    def each_on_one(x: jax.Array) -> jax.Array:
        return with_sharding_constraint(x, spec(mesh, x.shape, [mesh.axis_names, (), ()]))

    m, n = arrays[0].shape[-2:]
    parts = [in_parts(x.reshape(-1, m, n)) for x in arrays]
    filling = jnp.zeros((-sum(map(len, parts)) % mesh.size, m, n), arrays[0].dtype)
    dealt = each_on_one(in_parts(jnp.concatenate([*parts, filling])))
    results = in_parts(each_on_one(function(dealt)))
    back, start = [], 0
    for x, part in zip(arrays, parts, strict=True):
        back.append(in_parts(results[start : start + len(part)]).reshape(x.shape))
        start += len(part)
    return back

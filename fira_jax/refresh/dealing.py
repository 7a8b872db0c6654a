"""Work on many matrices: by all devices together, one after another, or dealt out to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import with_sharding_constraint
from jax.sharding import PartitionSpec

from fira_jax.mesh_axes import known_mesh

Read = Callable[[Any], jax.Array]
"""``where -> matrix``."""
Find = Callable[[jax.Array, Any], Any]
"""``(matrix, old) -> new``, of the structure of ``old``."""


def one_by_one(read: Read, find: Find, where: Any, old: Any, due: jax.Array) -> Any:
    """``find(read(where[i]), old[i])`` where ``due[i]``, ``old[i]`` elsewhere, in a loop.

    Each matrix stays split over a mesh as it is; what ``find`` needs whole is gathered.
    """

    def one(args: tuple[Any, Any, jax.Array]) -> Any:
        where, old, due = args
        return jax.lax.cond(due, lambda: find(read(where), old), lambda: old)

    return jax.lax.map(one, (where, old, due))


def dealt_out(read: Read, find: Find, where: Any, old: Any, due: jax.Array) -> Any:
    """The same, a different matrix on each device, as many in a round as there are devices.

    Before a round each matrix is split by its rows over all devices, then an all-to-all makes it
    whole on one: a device receives as much as one matrix, or two. The last round is filled up with
    such that are not due. Without a mesh of automatic axes (``jax.set_mesh``) nothing is dealt out.
    """
    mesh = known_mesh()
    if mesh is None:
        return one_by_one(read, find, where, old, due)
    names = mesh.axis_names
    rounds = -(-len(due) // mesh.size)

    def cut(x: jax.typing.ArrayLike) -> jax.Array:
        x = jnp.asarray(x)
        filling = jnp.zeros((rounds * mesh.size - len(x), *x.shape[1:]), x.dtype)
        return jnp.concatenate([x, filling]).reshape(rounds, mesh.size, *x.shape[1:])

    def own(matrix: jax.Array, old: Any, due: jax.Array) -> Any:
        args = jax.tree.map(lambda x: x[0], (matrix, old, due))
        new = jax.lax.cond(args[2], find, lambda _, old: old, *args[:2])
        return jax.tree.map(lambda x: x[None], new)

    def one_round(args: tuple[Any, Any, jax.Array]) -> Any:
        where, old, due = args

        def find_all() -> Any:
            # By rows first, however each is split: left to choose a way for matrices that are split
            # differently, the compiler would gather them.
            rows, each = PartitionSpec(names, None), PartitionSpec(names)
            split = jax.lax.map(lambda at: with_sharding_constraint(read(at), rows), where)
            matrices = with_sharding_constraint(split, PartitionSpec(None, *rows))
            apart = jax.shard_map(own, in_specs=each, out_specs=each, check_vma=False)
            return apart(matrices, old, due)

        return jax.lax.cond(jnp.any(due), find_all, lambda: old)

    found = jax.lax.map(one_round, jax.tree.map(cut, (where, old, due)))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[: len(due)], found)

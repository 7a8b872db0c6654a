"""The axes of a mesh that split an array, and the mesh that a program is traced for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec

Axes = tuple[str, ...]
"""The mesh axes that split one dimension of an array."""


def known_mesh() -> AbstractMesh | None:
    """The mesh of ``jax.set_mesh`` if it has several devices and its axes are automatic ones."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh if mesh.size > 1 and set(mesh.axis_types) == {AxisType.Auto} else None


def axes_of(sharding: PartitionSpec, ndim: int) -> list[Axes]:
    """The mesh axes of each of ``ndim`` dimensions."""
    entries = [*sharding, *[None] * (ndim - len(sharding))]
    return [() if e is None else (e,) if isinstance(e, str) else tuple(e) for e in entries]


def spec(mesh: Mesh | AbstractMesh, shape: Sequence[int], axes: Sequence[Axes]) -> PartitionSpec:
    """The ``PartitionSpec`` of these axes; of each dimension as many as divide it together."""
    kept = [_dividing(mesh, size, names) for size, names in zip(shape, axes, strict=True)]
    return PartitionSpec(*(names[0] if len(names) == 1 else names or None for names in kept))


def _dividing(mesh: Mesh | AbstractMesh, size: int, axes: Axes) -> Axes:
    while size % math.prod(mesh.shape[name] for name in axes):
        axes = axes[:-1]
    return axes

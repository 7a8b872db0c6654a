"""Along which mesh axes the arrays of a subspace are split, given those of the weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from fira_jax.matrix_view import MatrixView
from fira_jax.mesh_axes import Axes, spec
from fira_jax.subspace import Subspace


class Split(NamedTuple):
    """The mesh axes that split the dimensions of a weight read as ``[*batch, m, n]``."""

    batch: tuple[Axes, ...]
    m: Axes
    n: Axes

    @classmethod
    def of_array(cls, view: MatrixView, axes: Sequence[Axes]) -> Split:
        """From those of the weight as it is stored."""

        def merged(dimensions: tuple[int, ...]) -> Axes:
            # Only the first of several dimensions read as one may be split.
            first, *others = (axes[i] for i in dimensions)
            return () if any(others) else first

        pieces = ((),) if view.pieces > 1 else ()
        batch = tuple(axes[i] for i in view.batch_axes)
        return cls(batch + pieces, merged(view.input_axes), merged(view.output_axes))

    def array(self, view: MatrixView) -> list[Axes]:
        """Those of the weight as it is stored."""
        axes: list[Axes] = [()] * len(view.shape)
        for i, of_batch in zip(view.batch_axes, self.batch, strict=False):
            axes[i] = of_batch
        axes[view.input_axes[0]], axes[view.output_axes[0]] = self.m, self.n
        return axes

    def part(self, view: MatrixView, shape: Sequence[int], *, basis: bool) -> list[Axes]:
        """Those of an array ``shape`` that belongs to the weight's subspace.

        Args:
          view: how the weight is read as matrices.
          shape: ``[*batch, ...]``.
          basis: whether it is the basis or what is stored for it, ``[*batch, a, r]``; all else is
            ``[*batch, r, b]``, or not split but for its batch axes.
        """
        a, b = (self.m, self.n) if view.compress_input else (self.n, self.m)
        own = shape[len(self.batch) :]
        inside: list[Axes] = [()] * len(own)
        if len(own) == 2 and basis and (own[0] == view.compressed_size or own[1] != view.long_size):
            inside = [a + b, ()]  # by the rows of the basis, or by groups of them
        elif len(own) == 2 and not basis and own[1] == view.long_size:
            inside = [(), b + a]
        return [*self.batch[: len(shape)], *inside]

    def node(self, node: Subspace, mesh: Mesh | AbstractMesh) -> Subspace:
        """A ``PartitionSpec`` for each array of ``node``."""

        def one(path: Any, x: jax.Array) -> PartitionSpec:
            field = path[0].name
            if field == "matrix":
                return spec(mesh, x.shape, [*self.batch, self.m, self.n])
            return spec(mesh, x.shape, self.part(node.view, x.shape, basis=field == "basis"))

        return jax.tree_util.tree_map_with_path(one, node)

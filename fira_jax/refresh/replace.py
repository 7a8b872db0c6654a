"""How all bases of a model that are due are replaced together."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fira_jax.basis.protocol import Basis
from fira_jax.matrix_view import MatrixView
from fira_jax.refresh.dealing import Find, Read, dealt_out, one_by_one
from fira_jax.whole_matrices import in_parts


def replace_bases(
    basis: Basis,
    views: Sequence[MatrixView],
    matrices: Sequence[jax.Array],
    stored: Sequence[Any],
    due: Sequence[jax.Array],
    key: jax.Array,
) -> list[Any]:
    """Replaces the bases that are due and whose gradient is usable.

    Matrices of one canonical shape share one conditional and one factorization, compiled once and
    run in a loop: the program hardly grows with the number of layers, one matrix is factorized at
    a time, and a step without a refresh skips everything. A gradient that is zero
    or not finite is found out before any factorization (an infinity can hang LAPACK's SVD) and
    leaves its basis as it is.

    Args:
      basis: kind of basis.
      views: how each parameter is read as matrices.
      matrices: the gradients ``[*batch, m, n]``.
      stored: what the basis stores for each, arrays ``[*batch, ...]``, or nothing.
      due: which of them are to be replaced, bool ``[*batch]`` for each parameter.
      key: for whatever is random.

    Returns:
      The new stored values.
    """
    alike: dict[Any, list[int]] = collections.defaultdict(list)
    for i, (view, matrix, old) in enumerate(zip(views, matrices, stored, strict=True)):
        dtypes = tuple(x.dtype for x in jax.tree.leaves(old))
        if dtypes:
            size = (view.compressed_size, view.long_size, view.rank)
            alike[size, matrix.dtype, dtypes].append(i)

    new = list(stored)
    for group in alike.values():
        of_group = ([x[i] for i in group] for x in (matrices, stored, due))
        found = _replace_alike(basis, tuple(views[i] for i in group), *of_group, key)
        for i, value in zip(group, found, strict=True):
            new[i] = value
    return new


# Jitted so that an update that is not inside a jit compiles its refresh once, not at every step.
@functools.partial(jax.jit, static_argnames=("basis", "views"))
def _replace_alike(
    basis: Basis,
    views: tuple[MatrixView, ...],
    matrices: list[jax.Array],
    stored: list[Any],
    due: list[jax.Array],
    key: jax.Array,
) -> list[Any]:
    """The same for parameters whose matrices have the same canonical shape."""
    stacks = _Stacks.of(views)
    all_due = jnp.concatenate([due[i].reshape(-1) for i in stacks.order])

    def replace() -> list[Any]:
        find_each = dealt_out if basis.whole else one_by_one
        found = find_each(
            stacks.reader(matrices),
            _finder(basis, views[0].rank, key),
            stacks.addresses(),
            stacks.gather(stored),
            all_due,
        )
        return stacks.scatter(found, stored, jnp.any(all_due))

    return jax.lax.cond(jnp.any(all_due), replace, lambda: stored)


def _finder(basis: Basis, rank: int, key: jax.Array) -> Find:
    """``(gradient, stored) -> stored``: finds a basis if the gradient is usable."""

    def find(grad: jax.Array, old: Any) -> Any:
        # Widened where it is used: a copy in float32 outside the branch would exist beside it.
        wide = jnp.promote_types(grad.dtype, jnp.float32)
        largest = jnp.max(jnp.abs(grad)).astype(wide)
        # One over a subnormal number is infinite.
        usable = jnp.isfinite(largest) & (largest >= jnp.finfo(wide).tiny)
        unit = largest if basis.scale_free else 1
        return jax.lax.cond(
            usable, lambda: basis.find(grad.astype(wide) / unit, old, rank, key), lambda: old
        )

    return find


@dataclasses.dataclass(frozen=True)
class _Stacks:
    """Parameters of one canonical shape, as few stacks of matrices ``[count, m, n]``.

    A parameter that is a stack stays where it stands, however large. Single matrices of one
    orientation are copied into one stack: to pick each by a branch of its own would take the
    compiler longer.

    Attributes:
      views: of each parameter.
      members: which parameters each stack holds.
    """

    views: tuple[MatrixView, ...]
    members: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, views: tuple[MatrixView, ...]) -> _Stacks:
        together: dict[Any, list[int]] = collections.defaultdict(list)
        for i, view in enumerate(views):
            # A tuple, since the position 1 would equal True.
            together[(i,) if view.batch_shape else view.compress_input].append(i)
        return cls(views, tuple(map(tuple, together.values())))

    @property
    def order(self) -> list[int]:
        """The parameters in the order in which they stand in the stacks."""
        return list(itertools.chain.from_iterable(self.members))

    def _count(self, i: int) -> int:
        return int(np.prod(self.views[i].batch_shape, dtype=int))

    def addresses(self) -> tuple[np.ndarray, np.ndarray]:
        """For each matrix the number of its stack and its place in it."""
        sizes = [sum(map(self._count, members)) for members in self.members]
        return np.repeat(np.arange(len(sizes)), sizes), np.concatenate(list(map(np.arange, sizes)))

    def reader(self, matrices: Sequence[jax.Array]) -> Read:
        """``address -> [a, b]`` from the parameters' gradients."""

        def branch(members: tuple[int, ...]) -> Any:
            shape = self.views[members[0]].matrix_shape
            pieces = [matrices[i].reshape(-1, *shape) for i in members]
            stack = pieces[0] if len(pieces) == 1 else jnp.concatenate(list(map(in_parts, pieces)))
            return lambda place: self.views[members[0]].canonical(stack[place])

        branches = list(map(branch, self.members))
        return lambda address: jax.lax.switch(address[0], branches, address[1])

    def gather(self, stored: Sequence[Any]) -> Any:
        """What is stored for all matrices, arrays ``[count, ...]``."""

        def flat(i: int) -> Any:
            batch = len(self.views[i].batch_shape)
            return jax.tree.map(lambda x: x.reshape(-1, *x.shape[batch:]), stored[i])

        return jax.tree.map(lambda *x: jnp.concatenate(x), *map(flat, self.order))

    def scatter(self, found: Any, like: Sequence[Any], true: jax.Array) -> list[Any]:
        """The way back from :meth:`gather`: a value shaped like each of ``like``.

        Args:
          found: arrays ``[count, ...]``.
          like: what is stored for each parameter now.
          true: a flag that is set, which the compiler does not know.
        """
        ends = list(itertools.accumulate(map(self._count, self.order), initial=0))
        rows = dict(zip(self.order, itertools.pairwise(ends), strict=True))
        single = [i for i in self.order if not self.views[i].batch_shape]
        places = dict(zip(single, _hidden([rows[i][0] for i in single], true), strict=True))

        def take(i: int, x: jax.Array, like: jax.Array) -> jax.Array:
            begin, end = rows[i]
            taken = jax.lax.dynamic_index_in_dim(x, places[i]) if i in places else x[begin:end]
            return taken.reshape(like.shape)

        return [jax.tree.map(functools.partial(take, i), found, old) for i, old in enumerate(like)]


def _hidden(numbers: list[int], true: jax.Array) -> list[jax.Array]:
    """The numbers, as the compiler does not know them.

    XLA's CPU compiler makes a kernel of its own for each slice whose place it knows. What comes out
    of a choice it does not know, and one kernel serves all matrices of a size.
    """
    return jax.lax.cond(
        true, lambda: list(map(jnp.int32, numbers)), lambda: [jnp.int32(0)] * len(numbers)
    )

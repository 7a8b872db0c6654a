"""When a basis is replaced, and how all bases of a model are replaced together."""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fira_jax.basis.protocol import Basis
from fira_jax.matrix_view import MatrixView
from fira_jax.refresh.dealing import dealt_out, one_by_one


def refresh(
    basis: Basis,
    views: Sequence[MatrixView],
    matrices: Sequence[jax.Array],
    stored: Sequence[Any],
    due: Sequence[jax.Array],
    key: jax.Array,
) -> tuple[list[Any], jax.Array]:
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
      stored: what the basis stores for each, arrays ``[*batch, ...]``; masked where it stores
        nothing.
      due: which of them are to be replaced, bool ``[*batch]`` for each parameter.
      key: for whatever is random.

    Returns:
      The new stored values, and whether any basis was due.
    """
    groups: dict[Any, list[int]] = collections.defaultdict(list)
    for i, (view, matrix, old) in enumerate(zip(views, matrices, stored, strict=True)):
        if not isinstance(old, optax.MaskedNode):
            size = (view.compressed_size, view.long_size, view.rank)
            dtypes = tuple(x.dtype for x in jax.tree.leaves(old))
            groups[size, matrix.dtype, dtypes].append(i)

    new = list(stored)
    for group in groups.values():
        found = _refresh_alike(
            basis,
            tuple(views[i] for i in group),
            [matrices[i] for i in group],
            [stored[i] for i in group],
            [due[i].reshape(-1) for i in group],
            key,
        )
        for i, value in zip(group, found, strict=True):
            new[i] = value
    return new, jnp.any(jnp.concatenate([x.reshape(-1) for x in due] or [jnp.zeros(0, bool)]))


# Jitted so that an update that is not inside a jit compiles its refresh once, not at every step.
@functools.partial(jax.jit, static_argnames=("basis", "views"))
def _refresh_alike(
    basis: Basis,
    views: tuple[MatrixView, ...],
    matrices: list[jax.Array],
    stored: list[Any],
    due: list[jax.Array],
    key: jax.Array,
) -> list[Any]:
    """Refreshes parameters whose matrices have the same canonical shape."""
    rank = views[0].rank
    # A parameter that is a stack stays where it stands, however large. Single matrices are copied
    # into one: to pick each by a branch of its own would take the compiler longer. (Its key is a
    # tuple, since the position 1 would equal True.)
    together = collections.defaultdict(list)
    for i, view in enumerate(views):
        together[(i,) if view.batch_shape else view.compress_input].append(i)
    order = [i for members in together.values() for i in members]

    def flat(i: int) -> Any:
        batch = len(views[i].batch_shape)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[batch:]), stored[i])

    def refresh_all() -> list[Any]:
        stacks = [
            jnp.concatenate([matrices[i].reshape(-1, *views[i].matrix_shape) for i in members])
            for members in together.values()
        ]
        pick = [
            lambda i, x=stack, view=views[members[0]]: view.canonical(x[i])
            for stack, members in zip(stacks, together.values(), strict=True)
        ]

        def read(where: tuple[jax.Array, jax.Array]) -> jax.Array:
            stack, index = where
            return jax.lax.switch(stack, pick, index)

        def find(grad: jax.Array, old: Any) -> Any:
            # Widened where it is used: a copy in float32 outside the branch would exist beside it.
            wide = jnp.promote_types(grad.dtype, jnp.float32)
            largest = jnp.max(jnp.abs(grad)).astype(wide)
            # One over a subnormal number is infinite.
            usable = jnp.isfinite(largest) & (largest >= jnp.finfo(wide).tiny)
            unit = largest if getattr(basis, "scale_free", True) else 1
            return jax.lax.cond(
                usable, lambda: basis.find(grad.astype(wide) / unit, old, rank, key), lambda: old
            )

        find_each = dealt_out if getattr(basis, "whole", False) else one_by_one
        found = find_each(
            read,
            find,
            (
                np.repeat(np.arange(len(stacks)), [len(x) for x in stacks]),
                np.concatenate([np.arange(len(x)) for x in stacks]),
            ),
            jax.tree.map(lambda *x: jnp.concatenate(x), *(flat(i) for i in order)),
            jnp.concatenate([due[i] for i in order]),
        )
        ends = itertools.accumulate(len(due[i]) for i in order)
        rows = {i: slice(end - len(due[i]), end) for i, end in zip(order, ends, strict=True)}
        return [
            jax.tree.map(lambda x, y, i=i: x[rows[i]].reshape(y.shape), found, old)
            for i, old in enumerate(stored)
        ]

    return jax.lax.cond(jnp.any(jnp.concatenate(due)), refresh_all, lambda: stored)

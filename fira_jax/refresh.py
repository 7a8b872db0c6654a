"""When a basis is replaced, and how all bases of a model are replaced together."""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import optax

from fira_jax.basis.protocol import Basis

if TYPE_CHECKING:
    from fira_jax.low_rank import Leaf

Rule = Callable[[jax.Array, jax.Array, int, int], jax.Array]
"""``(count, index, total, gap) -> bool``: whether matrix ``index`` of ``total`` is due."""


def fixed(count: jax.Array, index: jax.Array, total: int, gap: int) -> jax.Array:
    """All matrices every ``gap`` steps, the first time at the first step."""
    del total
    return jnp.broadcast_to(count % gap == 0, index.shape)


def staggered(count: jax.Array, index: jax.Array, total: int, gap: int) -> jax.Array:
    """All at the first step, then each every ``gap`` steps, spread evenly: no step pays for all."""
    return (count == 0) | (count % gap == index * gap // total)


_NAMED: dict[str, Rule] = {"fixed": fixed, "staggered": staggered}


def resolve(rule: str | Rule) -> Rule:
    """The rule with this name, or the callable itself.

    Raises:
      ValueError: unknown name.
      TypeError: neither a name nor a callable.
    """
    if isinstance(rule, str):
        if rule not in _NAMED:
            raise ValueError(f"refresh must be one of {', '.join(map(repr, _NAMED))}, got {rule!r}")
        return _NAMED[rule]
    if not callable(rule):
        raise TypeError(f"refresh must be a name or a callable, got {rule!r}")
    return rule


def refresh(
    basis: Basis,
    leaves: Sequence[Leaf],
    matrices: Sequence[jax.Array],
    stored: Sequence[jax.Array | optax.MaskedNode],
    due: Callable[[jax.Array, int], jax.Array],
    key: jax.Array,
) -> tuple[list[jax.Array | optax.MaskedNode], jax.Array]:
    """Replaces the bases that are due and whose gradient is usable.

    Equal matrices share one conditional and one factorisation, which is compiled once and run in
    a loop: the compiled program does not grow with the number of layers, at most one matrix is
    factorised at a time, and a step without a refresh skips everything. A gradient that is zero
    or not finite is found out before any factorisation (an infinity can hang LAPACK's SVD) and
    leaves its basis as it is.

    Args:
      basis: kind of basis.
      leaves: the parameters to project.
      matrices: their gradients ``[*batch, m, n]``.
      stored: what the basis stores for each, ``[*batch, ...]``; masked where it stores nothing.
      due: ``(index, total) -> bool`` for an array of matrix indices.
      key: for whatever is random.

    Returns:
      The new stored values, and whether any basis was due.
    """
    counts = [math.prod(leaf.view.batch_shape) for leaf in leaves]
    starts = [0, *itertools.accumulate(counts)]
    due_all = due(jnp.arange(starts[-1]), starts[-1])
    groups = collections.defaultdict(list)
    for i, leaf in enumerate(leaves):
        if not isinstance(stored[i], optax.MaskedNode):
            alike = (leaf.view.matrix_shape, leaf.view.compress_input, leaf.rank)
            groups[*alike, matrices[i].dtype, stored[i].dtype].append(i)

    new = list(stored)
    for group in groups.values():
        found = _refresh_alike(
            basis,
            leaves[group[0]],
            [matrices[i] for i in group],
            [stored[i] for i in group],
            jnp.concatenate([due_all[starts[i] : starts[i + 1]] for i in group]),
            key,
        )
        for i, value in zip(group, found, strict=True):
            new[i] = value
    return new, jnp.any(due_all)


def _refresh_alike(
    basis: Basis,
    leaf: Leaf,
    matrices: list[jax.Array],
    stored: list[jax.Array],
    due: jax.Array,
    key: jax.Array,
) -> list[jax.Array]:
    """Refreshes parameters whose matrices share shape, orientation and rank with ``leaf``'s."""
    view = leaf.view
    item_shape = stored[0].shape[len(view.batch_shape) :]

    def refresh_one(args: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        matrix, old, is_due = args
        grad = view.canonical(matrix).astype(jnp.promote_types(matrix.dtype, jnp.float32))
        largest = jnp.max(jnp.abs(grad))
        usable = jnp.isfinite(largest) & (largest > 0)
        return jax.lax.cond(
            is_due & usable,
            lambda: basis.find(grad / largest, old, leaf.rank, key),
            lambda: old,
        )

    def refresh_all() -> list[jax.Array]:
        flat = jnp.concatenate([x.reshape(-1, *view.matrix_shape) for x in matrices])
        olds = [x.reshape(-1, *item_shape) for x in stored]
        found = jax.lax.map(refresh_one, (flat, jnp.concatenate(olds), due))
        ends = itertools.accumulate(len(x) for x in olds)
        parts = jnp.split(found, list(ends)[:-1])
        return [part.reshape(x.shape) for part, x in zip(parts, stored, strict=True)]

    return jax.lax.cond(jnp.any(due), refresh_all, lambda: stored)

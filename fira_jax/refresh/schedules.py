"""When a basis is replaced: by the step count alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fira_jax.matrix_view import MatrixView
from fira_jax.refresh.lazy import Lazy
from fira_jax.refresh.protocol import Rule

Schedule = Callable[[jax.Array, jax.Array, int, int], jax.Array]
"""``(count, index, total, gap) -> bool``: whether matrix ``index`` of ``total`` is due."""


def fixed(count: jax.Array, index: jax.Array, total: int, gap: int) -> jax.Array:
    """All matrices every ``gap`` steps, the first time at the first step."""
    del total
    return jnp.broadcast_to(count % gap == 0, index.shape)


def staggered(count: jax.Array, index: jax.Array, total: int, gap: int) -> jax.Array:
    """All at the first step, then each every ``gap`` steps, spread evenly: no step pays for all."""
    return (count == 0) | (count % gap == index * gap // total)


_NAMED: dict[str, Schedule | Rule] = {"fixed": fixed, "staggered": staggered, "lazy": Lazy()}


def resolve(rule: str | Schedule | Rule) -> Schedule | Rule:
    """The rule with this name, or the callable or :class:`fira_jax.refresh.Rule` itself.

    Raises:
      ValueError: unknown name.
      TypeError: none of these.
    """
    if isinstance(rule, str):
        if rule not in _NAMED:
            raise ValueError(f"refresh must be one of {', '.join(map(repr, _NAMED))}, got {rule!r}")
        return _NAMED[rule]
    if isinstance(rule, type) or not (callable(rule) or isinstance(rule, Rule)):
        raise TypeError(
            f"refresh must be a name, a callable or a fira_jax.refresh.Rule, got {rule!r}"
        )
    return rule


def due(
    rule: Schedule | Rule,
    count: jax.Array,
    gap: int,
    views: Sequence[MatrixView],
    memory: Sequence[Any],
) -> list[jax.Array]:
    """Which bases are to be replaced before this step, bool ``[*batch]`` for each parameter.

    Args:
      rule: a resolved rule.
      count: steps taken.
      gap: ``update_proj_gap``.
      views: how each parameter is read as matrices.
      memory: what the rule remembers of each, if it does.
    """
    if isinstance(rule, Rule):
        return [rule.due(x, count, gap) for x in memory]
    ends = list(itertools.accumulate((math.prod(view.batch_shape) for view in views), initial=0))
    all_due = rule(count, jnp.arange(ends[-1]), ends[-1], gap)
    return [
        all_due[start:end].reshape(view.batch_shape)
        for start, end, view in zip(ends, ends[1:], views, strict=False)
    ]

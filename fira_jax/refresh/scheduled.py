"""When a basis is replaced, by the step count alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fira_jax.refresh.protocol import Rule

Schedule = Callable[[jax.Array, jax.typing.ArrayLike, int, int], jax.Array]
"""``(count, index, total, gap) -> bool``: whether matrix ``index`` of ``total`` is due."""


@dataclasses.dataclass(frozen=True)
class Scheduled(Rule):
    """A rule that remembers nothing.

    Args:
      schedule: ``(count, index, total, gap) -> bool``: which of the model's ``total`` matrices,
        those numbered ``index``, are due after ``count`` steps; all but ``gap`` and ``total`` are
        arrays.

    Raises:
      TypeError: at the first step, the schedule does not say so for each matrix.

    Example:
      >>> import fira_jax
      >>> early = fira_jax.refresh.Scheduled(lambda count, index, total, gap: count + 0 * index < 9)
      >>> tx = fira_jax.galore(1e-2, rank=8, refresh=early)
    """

    schedule: Schedule

    judges = False

    def due(  # noqa: D102
        self,
        memory: Any,  # noqa: ARG002
        count: jax.Array,
        gap: int,
        index: jax.typing.ArrayLike,
        total: int,
    ) -> jax.Array:
        due = jnp.asarray(self.schedule(count, index, total, gap))
        if due.shape != jnp.shape(index) or due.dtype != bool:
            raise TypeError(
                "a schedule of refreshes must return a bool for each index it is given, shape "
                f"{jnp.shape(index)}, got {due.dtype} of shape {due.shape} from {self.schedule!r}"
            )
        return due


def _fixed(count: jax.Array, index: jax.typing.ArrayLike, total: int, gap: int) -> jax.Array:
    """All matrices every ``gap`` steps, the first time at the first step."""
    del total
    return jnp.broadcast_to(count % gap == 0, jnp.shape(index))


def _staggered(count: jax.Array, index: jax.typing.ArrayLike, total: int, gap: int) -> jax.Array:
    """All at the first step, then each every ``gap`` steps, spread evenly: no step pays for all."""
    return (count == 0) | (count % gap == jnp.asarray(index) * gap // total)


FIXED = Scheduled(_fixed)
STAGGERED = Scheduled(_staggered)

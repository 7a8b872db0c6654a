"""A new subspace when gradients inside the old one have stopped going anywhere."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fira_jax.matrix_view import MatrixView
from fira_jax.norms import frobenius_norm
from fira_jax.refresh.protocol import Rule, matrix_norm
from fira_jax.subspace import Subspace


class DisplacementMemory(NamedTuple):
    """What :class:`Displacement` remembers of each matrix.

    Attributes:
      age: the published counter :math:`T`, int32 ``[*batch]``: 2 after the step of a switch; 0 if
        a switch is due.
      initial: the projected gradient's direction at that step, ``[*batch, r, b]``.
    """

    age: jax.Array
    initial: jax.Array


@dataclasses.dataclass(frozen=True)
class Displacement(Rule):
    r"""Switches when the unit projected gradient has moved too little a step since the last switch.

    Every ``update_proj_gap`` steps of a subspace's life :math:`T` the matrix is judged by

    .. math::

        \frac{1}{T} \left\lVert \frac{R_t}{\lVert R_t \rVert_F}
        - \frac{R_{t_0}}{\lVert R_{t_0} \rVert_F} \right\rVert_F < \gamma

    and switches at the next step if so. The norm is at most 2, so a switch comes after
    :math:`2 / \gamma` steps at the latest, and where noise makes successive gradients nearly
    orthogonal, at about :math:`\sqrt 2 / \gamma`. State: :math:`rb + 1` numbers a matrix.

    Args:
      gamma: :math:`\gamma`, movement a step below which the subspace counts as used up.

    Raises:
      ValueError: ``gamma`` is not positive.

    References:
      `Lotus <https://arxiv.org/abs/2602.01233>`_, 2026, algorithm 1. The text of the paper
      motivates it by another quantity, the efficiency of the path, which is not offered here. Its
      count starts at 1 and is raised at the step of the switch, too; so does this.

    Example:
      >>> import fira_jax
      >>> tx = fira_jax.galore(1e-2, 8, 50, refresh=fira_jax.refresh.Displacement(gamma=0.01))
    """

    gamma: float = 0.01

    def __post_init__(self) -> None:
        """Checks the argument."""
        if not self.gamma > 0:
            raise ValueError(f"gamma must be positive, got {self.gamma}")

    def init(self, view: MatrixView, dtype: jax.typing.DTypeLike) -> DisplacementMemory:  # noqa: D102
        shape = (*view.batch_shape, view.rank, view.long_size)
        return DisplacementMemory(jnp.zeros(view.batch_shape, jnp.int32), jnp.zeros(shape, dtype))

    def due(  # noqa: D102
        self,
        memory: DisplacementMemory,
        count: jax.Array,  # noqa: ARG002
        gap: int,  # noqa: ARG002
        index: jax.typing.ArrayLike,  # noqa: ARG002
        total: int,  # noqa: ARG002
    ) -> jax.Array:
        return memory.age == 0

    def update(  # noqa: D102
        self,
        memory: DisplacementMemory,
        node: Subspace,
        old: Any,  # noqa: ARG002
        refreshed: jax.Array,
        gap: int,
    ) -> DisplacementMemory:
        age = jnp.where(refreshed, 2, memory.age + 1)
        norm = matrix_norm(node)[..., None, None]
        direction = node.raw / jnp.where(norm > 0, norm, 1)
        steps = age.astype(direction.dtype)
        moved = frobenius_norm(direction - memory.initial.astype(direction.dtype)) / steps
        used_up = ~refreshed & (age % gap == 0) & (moved < self.gamma)
        initial = jnp.where(
            refreshed[..., None, None], direction.astype(memory.initial.dtype), memory.initial
        )
        return DisplacementMemory(jnp.where(used_up, 0, age), initial)

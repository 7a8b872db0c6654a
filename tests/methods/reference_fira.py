"""Fira's released step for one weight (out, in), in NumPy float64, after its description.

Nothing is rearranged as in fira_jax: sides are told apart by hand, the residual is formed, the
limiter takes its norm directly, weights decay after the step.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np


class Direction(Protocol):
    """An optimizer in the subspace: coordinates to direction N and the step's correction c."""

    def __call__(self, coordinates: np.ndarray) -> tuple[np.ndarray, float]: ...


@dataclasses.dataclass
class Adam:
    """FiraAdamW: ε beside the uncorrected root, the bias corrected by way of the step size."""

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-6
    correct_bias: bool = True
    steps: int = 0
    mean: Any = 0.0
    square: Any = 0.0

    def __call__(self, coordinates: np.ndarray) -> tuple[np.ndarray, float]:
        self.steps += 1
        self.mean = self.b1 * self.mean + (1 - self.b1) * coordinates
        self.square = self.b2 * self.square + (1 - self.b2) * coordinates**2
        correction = 1.0
        if self.correct_bias:
            correction = np.sqrt(1 - self.b2**self.steps) / (1 - self.b1**self.steps)
        return self.mean / (np.sqrt(self.square) + self.eps), correction


@dataclasses.dataclass
class RMSProp:
    """FiraRMSProp, which is in the authors' repository but not in the package."""

    decay: float = 0.9
    eps: float = 1e-6
    momentum: float = 0.0
    centered: bool = False
    mean: Any = 0.0
    square: Any = 0.0
    buffer: Any = 0.0

    def __call__(self, coordinates: np.ndarray) -> tuple[np.ndarray, float]:
        self.square = self.decay * self.square + (1 - self.decay) * coordinates**2
        spread = self.square
        if self.centered:
            self.mean = self.decay * self.mean + (1 - self.decay) * coordinates
            spread = spread - self.mean**2
        self.buffer = self.momentum * self.buffer + coordinates / (np.sqrt(spread) + self.eps)
        return self.buffer, 1.0


@dataclasses.dataclass
class ReleasedFira:
    """The walk of one weight matrix."""

    direction: Direction
    rank: int
    gap: int
    alpha: float
    learning_rate: float
    weight_decay: float = 0.0
    steps: int = 0
    vectors: Any = None
    previous: float | None = None
    limited: int = 0

    def step(self, weight: np.ndarray, grad: np.ndarray) -> np.ndarray:
        """The weight after one more step."""
        left = grad.shape[0] < grad.shape[1]
        if self.steps % self.gap == 0:
            u, _, vt = np.linalg.svd(grad, full_matrices=False)
            vectors = u[:, : self.rank] if left else vt[: self.rank].T
            largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])]
            self.vectors = vectors * np.sign(largest)
        self.steps += 1

        p = self.vectors
        coordinates = p.T @ grad if left else grad @ p
        direction, correction = self.direction(coordinates)

        def back(x: np.ndarray) -> np.ndarray:
            return self.alpha * (p @ x if left else x @ p.T)

        rank_axis = 0 if left else 1
        ratio = np.linalg.norm(direction, axis=rank_axis, keepdims=True) / (
            np.linalg.norm(coordinates, axis=rank_axis, keepdims=True) + 1e-8
        )
        residual = self._limit((grad - back(coordinates)) * ratio)
        weight = weight - self.learning_rate * correction * (back(direction) + residual)
        return weight - self.learning_rate * self.weight_decay * weight

    def _limit(self, residual: np.ndarray) -> np.ndarray:
        norm = np.linalg.norm(residual)
        if self.previous is None:
            self.previous = norm
            return residual
        growth = norm / (self.previous + 1e-8)
        excess = max(growth, 1.01) / 1.01
        self.limited += excess > 1
        self.previous = norm / excess
        return residual / excess

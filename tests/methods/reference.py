"""Fira in NumPy float64, written from the published formulas and sharing no code with fira_jax.

One object is one matrix. It favours the letter of the formulas over speed: the projector is
applied as published, the residual is formed, norms are taken of full-size arrays.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass
class Reference:
    """Fira or GaLore on one weight ``[m, n]`` that maps m inputs to n outputs."""

    rank: int
    gap: int
    alpha: float
    residual: bool = True
    form: str = "released"
    granularity: str = "column"
    side: str = "short"
    gamma: float | None = 1.01
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-6
    bias_correction: str = "outside"
    carry: bool = False
    learning_rate: float = 1.0
    weight_decay: float = 0.0

    t: int = 0
    basis: Any = None
    m: Any = 0.0
    v: Any = 0.0
    previous: float = 0.0

    def step(self, weight: np.ndarray, grad: np.ndarray) -> np.ndarray:
        """What is added to the weight."""
        rows, columns = grad.shape
        compress_rows = rows == columns or (rows < columns) == (self.side == "short")
        direction = self._direction(grad if compress_rows else grad.T)
        update = direction if compress_rows else direction.T
        return -self.learning_rate * (update + self.weight_decay * weight)

    def _direction(self, grad: np.ndarray) -> np.ndarray:
        if self.t % self.gap == 0:
            self._refresh(grad)
        self.t += 1
        raw = self.basis.T @ grad
        self.m = self.b1 * self.m + (1 - self.b1) * raw
        self.v = self.b2 * self.v + (1 - self.b2) * raw**2
        correction1, correction2 = 1 - self.b1**self.t, 1 - self.b2**self.t
        c = 1.0
        if self.bias_correction == "inside":
            core = (self.m / correction1) / (np.sqrt(self.v / correction2) + self.eps)
        else:
            core = self.m / (np.sqrt(self.v) + self.eps)
            if self.bias_correction == "outside":
                c = np.sqrt(correction2) / correction1
        if not self.residual:
            return c * self.alpha * self.basis @ core

        axis = 0 if self.granularity == "column" else None
        phi = np.linalg.norm(core, axis=axis) / (np.linalg.norm(raw, axis=axis) + 1e-8)
        if self.form == "released":
            rest = phi * (grad - self.alpha * self.basis @ raw)
        else:
            rest = self.alpha * phi * (grad - self.basis @ raw)
        if self.gamma is not None:
            rest = self._limit(rest)
        return c * (self.alpha * self.basis @ core + rest)

    def _refresh(self, grad: np.ndarray) -> None:
        if not grad.any():
            if self.basis is None:
                self.basis = np.eye(grad.shape[0], min(self.rank, *grad.shape))
            return
        left = np.linalg.svd(grad, full_matrices=False)[0][:, : self.rank]
        largest = np.abs(left).argmax(axis=0)
        new = left * np.sign(left[largest, np.arange(left.shape[1])])
        if self.carry and self.t > 0:
            turn = new.T @ self.basis
            self.m, self.v = turn @ self.m, turn**2 @ self.v
        self.basis = new

    def _limit(self, rest: np.ndarray) -> np.ndarray:
        norm = np.linalg.norm(rest)
        if norm == 0:
            return rest
        if self.previous > 0:
            rest = rest / (max(norm / (self.previous + 1e-8), self.gamma) / self.gamma)
        self.previous = float(np.linalg.norm(rest))
        return rest

"""Methods that choose their subspace in ways of their own, in NumPy float64, one matrix at a time.

Written from the published formulas, sharing no code with fira_jax: ranks really change their
arrays' shapes, errors and residuals are formed, products are of full size. Each is a function from
gradients ``[steps, a, b]`` with a <= b to the updates before the learning rate.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Matrix = np.ndarray


def leading(grad: Matrix, rank: int) -> Matrix:
    """Singular vectors whose largest entry is positive."""
    left = np.linalg.svd(grad)[0][:, :rank]
    return left * np.sign(left[np.argmax(np.abs(left), axis=0), np.arange(left.shape[1])])


def qr(x: Matrix) -> Matrix:
    q, r = np.linalg.qr(x)
    return q * np.sign(np.diag(r))


class Adam:
    """Moments of coordinates, textbook bias correction."""

    def __init__(self, b1: float, b2: float, eps: float) -> None:
        self.b1, self.b2, self.eps = b1, b2, eps
        self.t, self.m, self.v = 0, 0.0, 0.0

    def hats(self) -> tuple[Any, Any]:
        if self.t == 0:
            return 0 * self.m, 0 * self.v
        return self.m / (1 - self.b1**self.t), self.v / (1 - self.b2**self.t)

    def step(self, raw: Matrix) -> Matrix:
        self.t += 1
        self.m = self.b1 * self.m + (1 - self.b1) * raw
        self.v = self.b2 * self.v + (1 - self.b2) * raw**2
        m, v = self.hats()
        return m / (np.sqrt(v) + self.eps)

    def turn_by_overlap(self, turn: Matrix) -> None:
        self.m, self.v = turn @ self.m, turn**2 @ self.v

    def turn_by_parts(self, turn: Matrix) -> None:
        m, v = self.hats()
        self.v = (1 - self.b2**self.t) * np.abs(turn**2 @ (v - m**2) + (turn @ m) ** 2)
        self.m = turn @ self.m


def lotus(grads, rank, gap, scale, gamma, b1=0.9, b2=0.999, eps=1e-6):
    """Algorithm 1, with GaLore's Adam: eps beside the uncorrected root."""
    m = v = 0.0
    switch, updates = True, []
    for t, grad in enumerate(grads, start=1):
        if started := switch:
            basis = leading(grad, rank)
            initial, counter, switch = None, 1, False
        raw = basis.T @ grad
        direction = raw / np.linalg.norm(raw)
        initial = direction if initial is None else initial
        counter += 1
        if counter % gap == 0 and not started:
            switch = np.linalg.norm(direction - initial) / counter < gamma
        m, v = b1 * m + (1 - b1) * raw, b2 * v + (1 - b2) * raw**2
        correction = np.sqrt(1 - b2**t) / (1 - b1**t)
        updates.append(correction * scale * basis @ (m / (np.sqrt(v) + eps)))
    return np.stack(updates)


def adarankgrad(grads, rank, gap, scale, energy, threshold, decay, b1=0.9, b2=0.999, eps=1e-8):
    """Also returns the rank at each step."""
    adam, basis, age, updates, ranks = Adam(b1, b2, eps), None, 0, [], []
    first = average = 0.0
    for grad in grads:
        if age == 0:
            new = leading(grad, rank)
            held = np.cumsum(np.linalg.norm(new.T @ grad, axis=1) ** 2)
            enough = held >= energy * np.linalg.norm(grad) ** 2
            new = new[:, : np.argmax(enough) + 1 if enough.any() else rank]
            if basis is not None:
                adam.turn_by_overlap(new.T @ basis)
            basis = new
        raw = basis.T @ grad
        norm = np.linalg.norm(raw)
        average = norm if age == 0 else decay * average + (1 - decay) * norm
        first = norm if age == 0 else first
        age += 1
        if age == gap or average <= threshold * first:
            age = 0
        updates.append(scale * basis @ adam.step(raw))
        ranks.append(basis.shape[1])
    return np.stack(updates), ranks


def ldadam(grads, rank, scale, rho, b1=0.908, b2=0.99, eps=1e-8, feedback=True):
    adam, basis, error, updates = Adam(b1, b2, eps), None, 0.0, []
    for grad in grads:
        whole = grad + error
        if basis is None:
            new = leading(whole, rank)
            kept = turned = 0.0
        else:
            seen = rho * basis @ adam.hats()[0] + (1 - rho) * whole
            new = qr(seen @ (seen.T @ basis))
            kept = basis @ adam.m
            adam.turn_by_parts(new.T @ basis)
            turned = new @ adam.m
        raw = new.T @ whole
        if feedback:
            error = whole - new @ raw + b1 / (1 - b1) * (kept - turned)
        basis = new
        updates.append(scale * basis @ adam.step(raw))
    return np.stack(updates)


def subtrack(grads, rank, gap, scale, step, gamma=1.01, b1=0.9, b2=0.999, eps=1e-8):
    adam, basis, previous, updates = Adam(b1, b2, eps), None, None, []
    for t, grad in enumerate(grads):
        if basis is None:
            basis = leading(grad, rank)
        elif t % gap == 0:
            inside = basis.T @ grad
            tangent = -2 * (grad - basis @ inside) @ inside.T
            left, sizes, right = np.linalg.svd(tangent, full_matrices=False)
            u, angle, v = left[:, :1], step * sizes[0], right[:1].T
            turned = basis @ v * np.cos(angle) - u * np.sin(angle)
            new = turned @ v.T + basis @ (np.eye(rank) - v @ v.T)
            adam.turn_by_parts(new.T @ basis)
            basis = new
        raw = basis.T @ grad
        core = adam.step(raw)
        phi = np.linalg.norm(core, axis=0) / (np.linalg.norm(raw, axis=0) + 1e-8)
        rest = scale * phi * (grad - basis @ raw)
        norm = np.linalg.norm(rest)
        if previous is not None:
            rest = rest / (max(norm / (previous + 1e-8), gamma) / gamma)
        previous = np.linalg.norm(rest)
        updates.append(scale * basis @ core + rest)
    return np.stack(updates)

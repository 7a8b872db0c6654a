"""The learning rate of each method, found by one rule."""

import math
from collections.abc import Callable

START = 0.01


def on_grid(lr: float) -> int:
    """The place of a learning rate on the grid ``START * 2 ** (place / 2)``."""
    return round(2 * math.log2(lr / START))


def rate(place: int) -> float:
    """The learning rate at a place of the grid, in four digits.

    Example:
        >>> rate(0), rate(1), rate(-4)
        (0.01, 0.01414, 0.0025)
    """
    return float(f"{START * 2 ** (place / 2):.4g}")


def downhill(loss_at: Callable[[float], float], start: float = START) -> dict[float, float]:
    """Every learning rate tried and its loss: the lowest lies between two that are worse.

    Example:
        >>> losses = downhill(lambda lr: abs(lr - 0.021))
        >>> sorted(losses), min(losses, key=losses.get)
        ([0.007071, 0.01, 0.01414, 0.02, 0.02828], 0.02)
    """
    losses: dict[int, float] = {}
    best = on_grid(start)
    while True:
        for place in (best, best + 1, best - 1):
            if place not in losses:
                losses[place] = loss_at(rate(place))
        lowest = min(losses, key=lambda place: losses[place])
        if lowest == best:
            return {rate(place): loss for place, loss in losses.items()}
        best = lowest

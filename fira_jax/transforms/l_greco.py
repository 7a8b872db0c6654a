"""How strongly each layer's gradient is compressed, under one budget for all errors (L-GreCo)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def choose_options(
    sizes: Sequence[Sequence[float]],
    errors: Sequence[Sequence[float]],
    budget: float,
    resolution: int = 10_000,
) -> list[int]:
    r"""One option for each layer: the smallest total size whose errors fit a budget together.

    .. math::

        \min_{c} \sum_\ell s_{\ell c_\ell} \quad\text{so that}\quad
        \sum_\ell e_{\ell c_\ell} \le b

    by dynamic programming over the error spent, in ``resolution`` steps. Errors are rounded up, so
    the budget is never exceeded; at most one step a layer is given away.

    Args:
      sizes: for each layer, of each option.
      errors: likewise, not negative.
      budget: :math:`b`.
      resolution: number of steps.

    Returns:
      The index of each layer's option.

    Raises:
      ValueError: no choice fits the budget.

    Example:
      >>> from fira_jax.transforms import choose_options
      >>> choose_options(sizes=[[4, 1], [4, 2]], errors=[[0, 3], [0, 1]], budget=3)
      [1, 0]

    References:
      Alimohammadi et al., `L-GreCo: Layerwise-Adaptive Gradient Compression for Efficient and
      Accurate Deep Learning <https://arxiv.org/abs/2210.17357>`_, 2022.
    """
    best = np.full(resolution + 1, np.inf)  # by the error spent
    best[0] = 0
    choices = []
    for size, error in zip(sizes, errors, strict=True):
        if budget > 0:
            steps = np.ceil(np.asarray(error) / budget * resolution - 1e-9)
        else:
            steps = np.where(np.asarray(error) > 0, np.inf, 0)
        new, chosen = np.full_like(best, np.inf), np.zeros(resolution + 1, np.int64)
        for option, (s, step) in enumerate(zip(size, steps, strict=True)):
            if step > resolution:
                continue
            moved = np.full_like(best, np.inf)
            moved[int(step) :] = best[: resolution + 1 - int(step)] + s
            better = moved < new
            new[better], chosen[better] = moved[better], option
        best = new
        choices.append((chosen, steps))
    spent = int(np.argmin(best))
    if not np.isfinite(best[spent]):
        raise ValueError(f"no choice of options keeps the errors' sum within {budget}")
    found = []
    for chosen, steps in reversed(choices):
        option = int(chosen[spent])
        found.append(option)
        spent -= int(steps[option])
    return found[::-1]


def choose_ranks(
    gradients: Mapping[str, np.ndarray], ranks: Sequence[int], uniform_rank: int, slack: float = 1.0
) -> dict[str, int]:
    r"""A rank for each gradient that sends the least and errs no more than one rank for all.

    The error of rank :math:`r` is the Frobenius norm of what it leaves out,
    :math:`(\sum_{i>r} \sigma_i^2)^{1/2}`, its size :math:`r(m + n)`; the budget is ``slack`` times
    the sum of errors at ``uniform_rank``.

    Args:
      gradients: matrices, or stacks of them ``[*batch, m, n]``, by path; a few steps' means are
        better than one step's.
      ranks: to choose from.
      uniform_rank: what to compare with; counted among ``ranks``.
      slack: more than 1 sends less.

    Returns:
      Ranks by path, for :func:`power_sgd_mean`.

    Raises:
      ValueError: a rank below 1, or ``slack`` below 1.

    Example:
      >>> from fira_jax.transforms import choose_ranks
      >>> flat, steep = np.eye(8), np.diag([1.0, 0, 0, 0, 0, 0, 0, 0])
      >>> choose_ranks({"flat": flat, "steep": steep}, ranks=(1, 2, 4, 6), uniform_rank=4)
      {'flat': 4, 'steep': 1}

    References:
      As :func:`choose_options`.
    """
    options = sorted({*ranks, uniform_rank})
    if options[0] < 1:
        raise ValueError(f"ranks must be at least 1, got {options[0]}")
    if slack < 1:
        raise ValueError(f"slack must be at least 1, got {slack}: nothing might fit")
    sizes, errors, budget = [], [], 0.0
    for gradient in gradients.values():
        *batch, m, n = gradient.shape
        energy = np.linalg.svd(np.asarray(gradient, np.float64), compute_uv=False) ** 2
        left = [float(np.sqrt(energy[..., min(r, m, n) :].sum())) for r in options]
        sizes.append([float(np.prod(batch) * min(r, m, n) * (m + n)) for r in options])
        errors.append(left)
        budget += slack * left[options.index(uniform_rank)]
    chosen = choose_options(sizes, errors, budget * (1 + 1e-9))
    return {name: options[i] for name, i in zip(gradients, chosen, strict=True)}

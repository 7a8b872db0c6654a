"""The released PyTorch optimizers, run live on given gradients."""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch

with warnings.catch_warnings():
    # What the packages import warns of its own old age.
    warnings.simplefilter("ignore")
    from fira import FiraAdamW
    from fira.gradient_projection import GradientProjector
    from galore_torch import GaLoreAdamW
    from galore_torch.galore_projector import GaLoreProjector

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}


class Package(NamedTuple):
    """A released optimizer, its projector and its word for α."""

    optimizer: type[torch.optim.Optimizer]
    projector: type
    alpha: str


PACKAGES = {
    "fira": Package(FiraAdamW, GradientProjector, "alpha"),
    "galore": Package(GaLoreAdamW, GaLoreProjector, "scale"),
}


def optimizer(
    package: str,
    projected: list[torch.nn.Parameter],
    regular: list[torch.nn.Parameter],
    *,
    rank: int,
    gap: int,
    alpha: float,
    **options: Any,
) -> torch.optim.Optimizer:
    """The package's optimizer, set up as its README does."""
    chosen = PACKAGES[package]
    group = {"rank": rank, "update_proj_gap": gap, chosen.alpha: alpha, "proj_type": "std"}
    groups = [{"params": regular}, {"params": projected, **group}]
    return chosen.optimizer(
        [group for group in groups if group["params"]], no_deprecation_warning=True, **options
    )


@contextlib.contextmanager
def canonical_signs(package: str) -> Iterator[None]:
    """Inside, the package's singular vectors have their entry of largest magnitude positive.

    Nothing else of the package is touched. A float64 gradient keeps its precision, which the
    released code would reduce to float32.
    """
    projector = PACKAGES[package].projector
    released = projector.get_orthogonal_matrix

    def get_orthogonal_matrix(
        self: Any,
        weights: torch.Tensor,
        rank: int,
        type: str,  # noqa: A002  # as the packages name it
    ) -> torch.Tensor:
        if weights.dtype == torch.float64:
            left, _, right = torch.linalg.svd(weights, full_matrices=False)
            found = left[:, :rank] if type == "left" else right[:rank]
        else:
            found = released(self, weights.float(), rank, type)
        vectors = 0 if type == "left" else 1  # the axis along which a vector runs
        largest = found.abs().argmax(dim=vectors, keepdim=True)
        return (found * found.gather(vectors, largest).sign()).to(weights.dtype)

    with mock.patch.object(projector, "get_orthogonal_matrix", get_orthogonal_matrix):
        yield


class Trajectory(NamedTuple):
    """For each weight its values after every step, and the norm that the limiter remembers."""

    weights: list[np.ndarray]
    limiter: list[np.ndarray]


def trajectory(
    package: str,
    start: Sequence[np.ndarray],
    gradient: Callable[[int, list[np.ndarray]], Sequence[np.ndarray]],
    *,
    steps: int,
    schedule: Callable[[int], float],
    dtype: str = "float32",
    **options: Any,
) -> Trajectory:
    """Runs the package on a list of weights; those of two dimensions are projected.

    Args:
      package: ``"fira"`` or ``"galore"``.
      start: where the weights start, (out, in) or one-dimensional.
      gradient: maps the step and the weights to the gradients.
      steps: how many.
      schedule: maps the step to its learning rate.
      dtype: of weights, gradients and states.
      options: for :func:`optimizer`.
    """
    params = [torch.nn.Parameter(_tensor(x, dtype)) for x in start]
    projected, regular = ([p for p in params if (p.ndim == 2) == two] for two in (True, False))
    tx = optimizer(package, projected, regular, **options)
    weights: list[list[np.ndarray]] = []
    limiter: list[list[float]] = []
    with canonical_signs(package):
        for step in range(steps):
            for group in tx.param_groups:
                group["lr"] = schedule(step)
            current = [p.detach().double().numpy().copy() for p in params]
            for param, grad in zip(params, gradient(step, current), strict=True):
                param.grad = _tensor(grad, dtype)
            tx.step()
            weights.append([p.detach().double().numpy().copy() for p in params])
            limiter.append([float(tx.state[p].get("scaling_grad", math.nan)) for p in params])
    return Trajectory(
        [np.stack(x) for x in zip(*weights, strict=True)],
        [np.array(x) for x in zip(*limiter, strict=True)],
    )


def _tensor(x: np.ndarray, dtype: str) -> torch.Tensor:
    # By way of float32, as JAX does, so that both round once to bfloat16.
    wide = x if dtype == "float64" else x.astype(np.float32)
    return torch.tensor(wide).to(DTYPES[dtype])

"""WeLore's rank profile: which matrices are low-rank, by one threshold for the whole model."""

from collections.abc import Mapping

import jax
import numpy as np


def rank_profile(matrices: Mapping[str, jax.Array], keep: float) -> dict[str, int]:
    """The rank of each parameter such that all together keep this share of their ranks.

    Each matrix's singular values are stretched to [0, 1]; those above one common threshold count.
    A matrix with few strong directions thus gets a small rank, and one with a flat spectrum a large
    one. The result can be given to ``fira_jax.LowRank(rank=...)``.

    Args:
        matrices: Weights or gradients by path, [*batch, m, n]; a stack gets the mean of its ranks,
            rounded up.
        keep: Share of all singular values that are kept, in (0, 1].

    Raises:
        ValueError: ``keep`` is out of range.

    Example:
        >>> flat, steep = np.diag([5.0, 4.9, 4.8, 1.0]), np.diag([5.0, 0.3, 0.2, 0.1])
        >>> rank_profile({"flat": flat, "steep": steep}, keep=0.5)
        {'flat': 3, 'steep': 1}

    References:
        Jaiswal et al., WeLore, https://arxiv.org/abs/2407.11239. There the thresholds for LLaMA-2
        are listed; here the threshold follows from the share.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be in (0, 1], got {keep}")
    stretched = {}
    for path, matrix in matrices.items():
        values = np.linalg.svd(np.asarray(matrix, np.float32), compute_uv=False)
        low, high = values.min(-1, keepdims=True), values.max(-1, keepdims=True)
        stretched[path] = (values - low) / np.where(high > low, high - low, 1)
    everything = np.concatenate([values.ravel() for values in stretched.values()])
    count = max(1, round(keep * everything.size))
    threshold = np.sort(everything)[-count]
    return {
        path: max(1, int(np.ceil((values >= threshold).sum(-1).mean())))
        for path, values in stretched.items()
    }

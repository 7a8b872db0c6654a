"""Batches that grow as the norm test asks for (``--adaptive-batch``)."""

import itertools
from collections.abc import Iterator

import numpy as np
import optax

from experiments.text.batches import Batch
from experiments.training.config import PretrainConfig


def batches_per_update(config: PretrainConfig, opt_state: optax.OptState) -> int:
    """How many batches of ``batch_size`` the next update takes.

    A power of two, since each number compiles its own update. The size asked for is part of the
    optimizer's state, so a resumed run goes on with the same numbers.
    """
    if not config.adaptive_batch:
        return 1
    wanted = int(optax.tree.get(opt_state, "batch_size"))
    count = 1
    while count * config.batch_size < min(wanted, config.max_batch_size // 2 + 1):
        count *= 2
    return count


def next_rows(batches: Iterator[Batch], count: int) -> np.ndarray:
    """The windows of the next ``count`` batches, int32 ``[count * rows, seq_len + 1]``."""
    return np.concatenate([batch["tokens"] for batch in itertools.islice(batches, count)])

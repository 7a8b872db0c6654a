"""Runs that are trained once, as long as there is time."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

from experiments.files import console
from experiments.reproduce.store import Store


class OutOfTimeError(Exception):
    """The next run would begin after the budget."""


class Budget:
    """Trains what a store does not hold yet.

    Args:
      store: finished runs.
      hours: how long to begin new ones; a run that has begun is finished.
      train: from a run to its row.
    """

    def __init__(self, store: Store, hours: float, train: Callable[[Any], dict[str, Any]]):
        self.store = store
        self.train = train
        self.began = time.monotonic()
        self.seconds = 3600 * hours

    def loss(self, run: Any) -> float:
        """The final loss of a run, trained now if it must be; infinite if it diverged.

        Raises:
          OutOfTimeError: there is no time left for it.
        """
        if run not in self.store.rows:
            if time.monotonic() - self.began > self.seconds:
                raise OutOfTimeError(f"no time left for {run}")
            began = time.monotonic()
            row = self.train(run)
            self.store.add(row)
            left = max(0.0, self.seconds - (time.monotonic() - self.began)) / 60
            said = ", ".join(f"{key} {value}" for key, value in dataclasses.asdict(run).items())
            console.print(
                f"{said}: loss {row['eval_loss']} in {time.monotonic() - began:.0f} s, "
                f"{row['ms_per_step']:.0f} ms of CPU a step; {left:.0f} minutes left"
            )
        loss = self.store.rows[run]["eval_loss"]
        return math.inf if loss is None else loss

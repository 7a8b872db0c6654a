"""What is trained, in which order, until the time is over."""

from collections.abc import Sequence
from typing import Any

from experiments.reproduce.budget import Budget
from experiments.reproduce.methods import WITHOUT_RANK
from experiments.reproduce.run import Run, train
from experiments.reproduce.search import START, downhill
from experiments.reproduce.settings import SEARCH_SEED, SIZES
from experiments.reproduce.store import Store

# Where the first search of a method begins, if not at START: saves runs, changes no result.
FIRST_GUESS = {"adamw": 0.005, "galore": 0.02}


class Campaign:
    """Runs that are not in the store yet, as long as there is time for them.

    Args:
      store: finished runs.
      hours: how long to go on; a run that has begun is finished.
      published: rows whose learning rates are taken over, for methods that are not searched yet.
    """

    def __init__(self, store: Store, hours: float, published: Sequence[dict[str, Any]] = ()):
        self.store = store
        self.loss = Budget(store, hours, train).loss
        self.published = {
            (row["method"], row["size"], row["rank"]): row["lr"]
            for row in published
            if row["seed"] != SEARCH_SEED
        }

    def best_rate(self, method: str, size: str, rank: int) -> float:
        """The best learning rate for a method: published, or searched for on a seed of its own."""
        if (method, size, rank) in self.published:
            return self.published[method, size, rank]

        def at(lr: float) -> float:
            return self.loss(Run(method, size, rank, SEARCH_SEED, lr, SIZES[size].steps))

        losses = downhill(at, self.first_guess(method, size, rank))
        return min(losses, key=lambda lr: losses[lr])

    def first_guess(self, method: str, size: str, rank: int) -> float:
        """Where the search begins: at the best so far, here or at another size or rank."""
        tried = {
            run: row["eval_loss"]
            for run, row in self.store.rows.items()
            if run.method == method and run.seed == SEARCH_SEED and row["eval_loss"] is not None
        }
        here = {run: loss for run, loss in tried.items() if run.size == size}
        same = {run: loss for run, loss in here.items() if run.rank == rank}
        for losses in (same, here, tried):
            if losses:
                return min(losses, key=lambda run: losses[run]).lr
        return FIRST_GUESS.get(method, START)

    def table(
        self,
        methods: Sequence[str],
        size: str,
        ranks: Sequence[int],
        seeds: Sequence[int],
        lr: float | None = None,
    ) -> None:
        """Searches for every method's learning rate, then trains its seeds, one after the other.

        Args:
          methods: their names.
          size: of the model.
          ranks: of the subspace, for the methods that have one.
          seeds: of weights, batches and whatever is random in a method.
          lr: the learning rate of all, instead of a search.
        """
        how = SIZES[size]
        for rank in ranks:
            runs = []
            for method in methods:
                used = how.ranks[0] if method in WITHOUT_RANK else rank
                runs.append((method, used, lr or self.best_rate(method, size, used)))
            for seed in seeds:
                for method, used, best in runs:
                    self.loss(Run(method, size, used, seed, best, how.steps))

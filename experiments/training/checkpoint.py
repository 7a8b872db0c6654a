"""Orbax checkpoints of everything that decides how a run goes on."""

from pathlib import Path
from typing import Any

import jax
from grain.python import DatasetIterator
from orbax.checkpoint import v1 as ocp


class Checkpoints:
    """The newest ``keep`` checkpoints of a run, one folder a step.

    Orbax writes each into a temporary folder and renames it when complete, so a process killed
    while saving leaves the previous checkpoint as the newest.

    Args:
        directory: Where the folders go; created if missing, leftovers of killed saves removed.
        keep: How many of the newest checkpoints stay. Two by default: deleting the older one
            begins only once the newer one is complete.
    """

    def __init__(self, directory: Path, keep: int = 2):
        self._checkpointer = ocp.training.Checkpointer(
            directory.absolute(),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    @property
    def latest_step(self) -> int:
        """The newest complete checkpoint's step, 0 if there is none."""
        latest = self._checkpointer.latest
        return latest.step if latest else 0

    def save(self, step: int, state: Any, data: DatasetIterator, seconds: float) -> None:
        """Starts saving; copies what it needs, so the caller may donate ``state`` at once.

        Args:
            step: Number of updates done.
            state: Pytree of arrays.
            data: The training batches' iterator, standing behind batch ``step``.
            seconds: Training time so far, so that throughput survives a restart.
        """
        # The iterator's state is the same in every process, however many there are.
        metadata = {"seconds": seconds, "data": data.get_state()}
        self._checkpointer.save_checkpointables_async(
            step, {"state": state}, custom_metadata=metadata
        )

    def restore(self, abstract_state: Any, data: DatasetIterator) -> tuple[Any, float]:
        """The newest checkpoint's state and seconds; moves ``data`` to where it stood.

        Args:
            abstract_state: Shapes and dtypes to restore. Without a target Orbax turns named
                tuples into dictionaries, and without shardings it guesses them from the file.
            data: A fresh iterator over the same data.
        """
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or here
            ),
            abstract_state,
        )
        step = self._checkpointer.latest
        restored = self._checkpointer.load_checkpointables(step, {"state": target})
        metadata = self._checkpointer.metadata(step).custom_metadata
        data.set_state(metadata["data"])
        return restored["state"], metadata["seconds"]

    def close(self) -> None:
        """Waits until the last save is complete."""
        self._checkpointer.close()

"""Orbax checkpoints of everything that decides how a run goes on, each with its own proof.

With a state go its arrays' checksums (``checksums.py``) and a note: a value for JSON with its own
SHA-256. A checkpoint is good if what is read back has the same; otherwise the one before decides.
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from experiments.files import one_line
from experiments.training.checksums import checksums
from experiments.training.quiet import raise_without_logging

# Raised when a state's structure changes on purpose, with a way to read the older one.
# 0: before checksums; 1: as described here.
VERSION = 1

Note = dict[str, Any]
_policies = ocp.training.preservation_policies


class CheckpointError(RuntimeError):
    """A checkpoint can't be written, or none can be read."""


class Checkpoints:
    """The newest ``keep`` checkpoints of a run and the best evaluated one, one folder a step.

    Orbax writes each into a temporary folder and renames it when complete, so a process killed
    while saving leaves the previous checkpoint as the newest.

    Args:
        directory: Where the folders go; created if missing, leftovers of killed saves removed.
        keep: How many of the newest checkpoints stay. Two by default: deleting the older one
            begins only once the newer one is complete.
        say: Gets a line when a checkpoint is not what it should be.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        keep: int = 2,
        say: Callable[[str], None] = print,
    ):
        self._directory, self._say = epath.Path(directory), say
        raise_without_logging()
        if "://" not in os.fspath(directory):
            self._directory = epath.Path(os.path.abspath(directory))
        self._tidy()
        best = _policies.BestN(
            get_metric_fn=lambda metrics: -metrics["eval_loss"],
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        self._checkpointer = ocp.training.Checkpointer(
            self._directory,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=_policies.AnyPreservationPolicy([_policies.LatestN(keep), best]),
            cleanup_tmp_directories=True,
        )
        self._saving: Any = None

    @property
    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, newest first."""
        return [checkpoint.step for checkpoint in reversed(self._checkpointer.checkpoints)]

    @property
    def latest_step(self) -> int:
        """The newest complete checkpoint's step, 0 if there is none."""
        return max(self.steps, default=0)

    def save(self, step: int, state: Any, note: Note, eval_loss: float | None = None) -> None:
        """Starts saving; copies what it needs, so the caller may donate ``state`` at once.

        Args:
            step: Number of updates done.
            state: Pytree of arrays.
            note: What else the run needs to go on, a value for JSON; the same in every process.
            eval_loss: If the state was just evaluated; the lowest one's checkpoint is kept.

        Raises:
            CheckpointError: If this or the previous save fails, such as on a full disk.
        """
        self.wait()
        metadata = {"version": VERSION, "checksums": checksums(state), "note": note}
        metrics = None if eval_loss is None else {"eval_loss": float(eval_loss)}
        with self._naming_what_failed(step):
            self._saving = self._checkpointer.save_checkpointables_async(
                step,
                {"state": state},
                metrics=metrics,
                custom_metadata={**metadata, "sha256": _sha256(metadata)},
            )
        self._step = step

    def check(self) -> None:
        """Raises :class:`CheckpointError` if the save under way has failed; waits for nothing."""
        if self._saving is not None and not self._checkpointer.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Waits until the save under way is complete."""
        # Orbax gives every save an event loop with a thread of its own and frees them when its
        # result is asked for: three file descriptors each, if nobody asks.
        saving, self._saving = self._saving, None
        if saving is not None:
            with self._naming_what_failed(self._step):
                saving.result()

    def restore(self, abstract_state: Any) -> tuple[int, Any, Note] | None:
        """Step, state and note of the newest good checkpoint; None if there never was any.

        What is newer and damaged is set aside, as ``STEP.damaged``, once a good one is found.

        Args:
            abstract_state: Shapes and dtypes to restore. Without a target Orbax turns named
                tuples into dictionaries, and without shardings it guesses them from the file.

        Raises:
            CheckpointError: If there are checkpoints but none is good.
        """
        damaged: dict[int, str] = {}
        for step in self.steps:
            found, reason = None, ""
            try:
                found = self._read(step, abstract_state)
            except _OtherStructureError as error:
                raise CheckpointError(f"{self._directory / str(step)}: {error}") from None
            except Exception as error:  # whatever Orbax, JSON and the disk say to damaged files
                reason = _short(error)
            if _all_agree(found is not None):
                for bad, why in damaged.items():
                    self._say(
                        f"checkpoint {bad} is damaged ({why}); going back to {step}: "
                        f"steps {step + 1} to {bad} are computed again"
                    )
                    self._set_aside(bad)
                if damaged:
                    self._checkpointer.reload()
                assert found is not None
                return step, *found
            damaged[step] = reason or "damaged as another process reads it"
        if not damaged:
            return None
        reasons = "".join(f"\n  {step}: {why}" for step, why in damaged.items())
        raise CheckpointError(
            f"no checkpoint in {self._directory} can be read; delete that folder to begin again"
            f"{reasons}"
        )

    def note(self) -> Note | None:
        """The newest readable checkpoint's note, without its state."""
        for step in self.steps:
            with contextlib.suppress(Exception):
                return _verified(self._checkpointer.metadata(step).custom_metadata)["note"]
        return None

    def _read(self, step: int, abstract_state: Any) -> tuple[Any, Note]:
        metadata = _verified(self._checkpointer.metadata(step).custom_metadata)
        expected = metadata["checksums"]
        if expected is not None:
            _compare_structure(expected, abstract_state)
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or here
            ),
            abstract_state,
        )
        state = self._checkpointer.load_checkpointables(step, {"state": target})["state"]
        if expected is None:
            self._say(f"checkpoint {step} is of an earlier version, without checksums: not checked")
        else:
            found = checksums(state)
            wrong = [name for name in expected if found[name] != expected[name]]
            if wrong:
                raise ValueError(f"other numbers than were saved in {', '.join(wrong[:3])}")
        return state, metadata["note"]

    def close(self) -> None:
        """Waits until the last save is complete, and frees what Orbax holds."""
        try:
            self.wait()
        finally:
            with contextlib.suppress(Exception):  # what failed was said above
                self._checkpointer.close()

    def _tidy(self) -> None:
        """Removes what Orbax would count as a checkpoint or an evaluation, and stumble over."""
        if self._directory.is_dir() and jax.process_index() == 0:
            for folder in self._directory.iterdir():
                if not re.fullmatch(r"\d+", folder.name):
                    continue
                if not any(folder.iterdir()):
                    self._say(f"{folder} is empty, no checkpoint: removed")
                    folder.rmdir()
                elif (folder / "metrics").exists() and not _is_evaluation(folder / "metrics"):
                    self._say(f"the evaluation of checkpoint {folder.name} is damaged: forgotten")
                    (folder / "metrics").rmtree()
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("checkpoints")

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            target = self._directory / f"{step}.damaged"
            target.rmtree(missing_ok=True)
            (self._directory / str(step)).rename(target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged")

    @contextlib.contextmanager
    def _naming_what_failed(self, step: int) -> Any:
        try:
            yield
        except Exception as error:  # of many types, and from a thread of Orbax's
            good = max((s for s in self.steps if s != step), default=0)
            remains = f"checkpoint {good} remains" if good else "there is none yet"
            raise CheckpointError(
                f"checkpoint {step} could not be written to {self._directory} ({_short(error)}); "
                f"{remains}: make room, then the same command continues"
            ) from error


@functools.partial(jax.jit)
def all_finite(tree: Any) -> jax.Array:
    """Whether no number of a tree is NaN or infinite."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in floats])) if floats else jnp.bool(1)


def _is_evaluation(folder: epath.Path) -> bool:
    """Whether the loss that Orbax keeps beside a checkpoint, to find the best one, is a number."""
    with contextlib.suppress(OSError, ValueError, TypeError, LookupError):
        return math.isfinite(json.loads((folder / "metrics").read_text())["eval_loss"])
    return False


class _OtherStructureError(ValueError):
    """The checkpoint is intact but of another program."""


def _compare_structure(saved: dict[str, list[Any]], abstract_state: Any) -> None:
    wanted = {
        jax.tree_util.keystr(path): [str(leaf.dtype), list(leaf.shape)]
        for path, leaf in jax.tree_util.tree_flatten_with_path(abstract_state)[0]
    }
    there = {name: kind[:2] for name, kind in saved.items()}
    different = [n for n in {**there, **wanted} if there.get(n) != wanted.get(n)]
    if different:
        shown = "".join(
            f"\n  {name}: {there.get(name, 'nothing')} there, {wanted.get(name, 'nothing')} now"
            for name in different[:3]
        )
        raise _OtherStructureError(
            f"its state has another structure than this program's, {len(different)} arrays "
            f"differ; continue it with the version that wrote it{shown}"
        )


def _verified(metadata: Any) -> dict[str, Any]:
    """A checkpoint's metadata, whose note is what was written."""
    if not isinstance(metadata, dict):
        raise ValueError("its note is lost")
    if "version" not in metadata:  # version 0: a note and nothing else
        metadata["data"], metadata["seconds"]
        return {"version": 0, "checksums": None, "note": metadata}
    if metadata["version"] > VERSION:
        raise _OtherStructureError(f"written by a newer program, version {metadata['version']}")
    rest = {key: value for key, value in metadata.items() if key != "sha256"}
    if _sha256(rest) != metadata["sha256"]:
        raise ValueError("its note is not what was written")
    return rest


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _all_agree(good: bool) -> bool:
    if jax.process_count() == 1:
        return good
    return bool(np.all(multihost_utils.process_allgather(np.array(good))))


def _short(error: BaseException) -> str:
    """The innermost cause in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(one_line(error).split())
    return text if len(text) <= 160 else f"{text[:77]} ... {text[-78:]}"  # the cause stands last

"""A run's folder: whose it is, and what stands in it whatever happened to it.

    config.json     the resolved run
    metrics.jsonl   one object a step
    tensorboard/    the same for eyes
    checkpoints/    where the run can go on
    summary.json    once finished

It may lie on a disk or, with a scheme, in an object store.
"""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from experiments.files import is_remote, write_atomically

Settings = Mapping[str, Mapping[str, Any]]

# Settings that only name something: what they name is compared instead.
NAMES = frozenset({"model", "dataset", "tokenizer"})


class RunFolder:
    """The files of one run.

    Args:
        directory: A path, or an address such as ``gs://bucket/run``.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self.path = epath.Path(directory)

    def __str__(self) -> str:
        return os.fspath(self.path)

    def create(self) -> None:
        """Makes the folder, if it is not there."""
        if not is_remote(self.path) and self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(20, "is a file, but a run needs a folder", str(self))
        self.path.mkdir(parents=True, exist_ok=True)

    def claim(
        self,
        settings: Settings,
        defaults: Settings,
        remembered: Callable[[], Settings | None] = lambda: None,
    ) -> None:
        """Makes the folder this run's, or checks that it already is.

        Args:
            settings: The run's settings by part (run, model, data), a value for JSON, written to
                ``config.json``.
            defaults: What a setting was before it existed: a run may have begun before it.
            remembered: The settings that the newest checkpoint holds, asked for if
                ``config.json`` is lost.

        Raises:
            ValueError: If the folder holds a run with other settings; names those that differ.
        """
        path = self.path / "config.json"
        there: Settings | None = _read_object(path)
        if there is None:
            there = remembered()
            if there is None and any_checkpoint(self.path / "checkpoints"):
                raise ValueError(
                    f"{path} is lost or damaged and the checkpoints don't know the run's settings: "
                    "put it back, or choose another --output-dir"
                )
            there = there or settings
            write_atomically(path, json.dumps(there, indent=2) + "\n")
        if different := _differences(
            there, settings, json.loads(json.dumps(defaults, default=str))
        ):
            raise ValueError(
                f"{self} holds a run with other settings; continue it with its own or choose "
                "another --output-dir\n  " + "\n  ".join(different)
            )

    @property
    def summary(self) -> dict[str, Any] | None:
        """What a finished run left; None if it is not finished, or the file is damaged."""
        return _read_object(self.path / "summary.json")

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Writes ``summary.json``."""
        write_atomically(self.path / "summary.json", json.dumps(summary, indent=2) + "\n")


def any_checkpoint(directory: epath.Path) -> bool:
    """Whether something lies in a folder of checkpoints that is named as one is."""
    return directory.is_dir() and any(
        folder.name.isdecimal() and any(folder.iterdir()) for folder in directory.iterdir()
    )


def _differences(there: Settings, here: Settings, usual: Settings) -> list[str]:
    different = []
    for part, now in here.items():
        then = there.get(part, {})
        for key in sorted((then.keys() | now.keys()) - NAMES):
            default = usual.get(part, {}).get(key)
            if then.get(key, default) != now.get(key, default):
                different.append(
                    f"{part}.{key}: {then.get(key, default)!r} there, {now.get(key)!r} now"
                )
    return different


def _read_object(path: epath.Path) -> dict[str, Any] | None:
    """A file's JSON object; None if there is no such file, or no object in it."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        return None
    return found if isinstance(found, dict) and found else None

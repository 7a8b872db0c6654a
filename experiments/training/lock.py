"""One process at a time in a run's folder.

On a disk the system keeps the lock and frees it when its holder dies, however it dies. An object
store has no such lock, but it can create an object only if there is none: that object is a lease,
which its holder renews and which others may take once it has stopped changing.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import fsspec
from etils import epath

from experiments.files import is_remote, write_atomically

NAME = "in_use.json"  # who holds the folder
LEASE_SECONDS = 60.0


class InUseError(RuntimeError):
    """Another process holds the run's folder."""


@contextlib.contextmanager
def held(
    directory: str | os.PathLike[str], seconds: float = LEASE_SECONDS
) -> Iterator[Callable[[], None]]:
    """Holds a run's folder; yields a function that raises if it is not held any more.

    Args:
        directory: A folder that exists, or a place in an object store.
        seconds: After so long without renewal the lease of an object store is free.

    Raises:
        InUseError: Another process holds it; says which.
    """
    if is_remote(directory):
        with Lease(epath.Path(directory) / NAME, seconds) as lease:
            yield lease.check
        return
    lock = filelock.FileLock(Path(directory) / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise InUseError(_message(directory, _read(epath.Path(directory) / NAME))) from None
    try:
        write_atomically(Path(directory) / NAME, json.dumps(_holder()))
        yield lambda: None
        (Path(directory) / NAME).unlink(missing_ok=True)
    finally:
        lock.release()


class Lease:
    """An object that says who works here, created only if absent and renewed while they do.

    Clocks of two machines differ, so nobody compares times: who finds a lease watches it for
    ``seconds``, and takes it only if it has not changed meanwhile.
    """

    def __init__(self, path: epath.Path, seconds: float = LEASE_SECONDS):
        self._path, self._seconds = path, seconds
        self._files, self._name = fsspec.core.url_to_fs(os.fspath(path))
        self._mine: dict[str, Any] = {**_holder(), "token": uuid.uuid4().hex, "renewed": 0}
        self._done = threading.Event()
        self._lost = False
        self._renewer = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> "Lease":
        while not self._create():
            found = self._watch()
            if found:
                raise InUseError(_message(self._path.parent, found))
        self._renewer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._renewer.join()
        if not self._lost and _read(self._path).get("token") == self._mine["token"]:
            self._path.unlink(missing_ok=True)

    def check(self) -> None:
        """Raises :class:`InUseError` if another process has taken the lease meanwhile."""
        if self._lost:
            raise InUseError(_message(self._path.parent, _read(self._path)))

    def _create(self) -> bool:
        try:
            self._files.pipe_file(self._name, json.dumps(self._mine).encode(), mode="create")
        except FileExistsError:
            return False
        return True

    def _watch(self) -> dict[str, Any]:
        """Who holds the lease; nobody, after removing it, if it did not change for long enough."""
        first = _read(self._path)
        end = time.monotonic() + self._seconds
        while time.monotonic() < end:
            time.sleep(self._seconds / 20)
            now = _read(self._path)
            if now != first:
                return now
        if _read(self._path) == first:
            self._path.unlink(missing_ok=True)
        return {}

    def _renew(self) -> None:
        while not self._done.wait(self._seconds / 4):
            try:
                if _read(self._path).get("token") != self._mine["token"]:
                    self._lost = True
                    return
                self._mine["renewed"] += 1
                self._path.write_text(json.dumps(self._mine))
            except OSError:  # the store is away for a moment: try again
                continue


def _holder() -> dict[str, Any]:
    return {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
    }


def _read(path: epath.Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _message(directory: object, holder: dict[str, Any]) -> str:
    who = "process {process} on {host}, since {since}".format_map(
        {"process": "?", "host": "?", "since": "?"} | holder
    )
    return f"{directory} is in use by {who}: wait for it or choose another --output-dir"

"""A run's log: ``metrics.jsonl`` for programs, TensorBoard for eyes."""

import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from etils import epath
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from experiments.files import is_remote, naming, write_atomically

Record = dict[str, Any]


class Log(Protocol):
    """Where the numbers of every update go."""

    def write(self, record: Record) -> Record:
        """Logs one step; returns what stands in the log."""

    def sync(self) -> list[Record]:
        """Brings all lines to the disk; returns those written since the last call."""

    def close(self) -> None:
        """Closes what is open."""


def read_metrics(path: str | os.PathLike[str]) -> list[Record]:
    """Every step of a ``metrics.jsonl``; lines that damage or a kill cut short are left out."""
    return [record for record in _read_lines(path) if isinstance(record.get("step"), int)]


def evaluations(path: str | os.PathLike[str]) -> list[tuple[int, float]]:
    """Steps and held-out losses of a ``metrics.jsonl``."""
    return [(r["step"], r["eval_loss"]) for r in read_metrics(path) if "eval_loss" in r]


def _read_lines(path: str | os.PathLike[str]) -> Iterator[Record]:
    """Every whole line: steps and gaps."""
    file = epath.Path(path)
    for line in file.read_bytes().splitlines(keepends=True) if file.exists() else ():
        try:
            record = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:  # also what is no UTF-8
            continue
        if isinstance(record, dict):
            yield record


class MetricsLog:
    """Appends one JSON object a step, and the same numbers to TensorBoard.

    The checkpoint decides where a run stands; the log follows it. Lines behind it are dropped,
    since the run computes them again. Lines missing before it are taken from what the checkpoint
    remembers; what neither knows leaves a line ``{"gap": [first, last]}``.

    An object store knows no appending: there the lines go out as a whole at every :meth:`sync`,
    and TensorBoard's files are left out.

    Args:
        directory: The run's folder.
        after_step: The step of the checkpoint that the run continues from, 0 for none.
        remembered: Records that the checkpoint holds.
        say: Gets a line about what is missing.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        after_step: int,
        remembered: Sequence[Record] = (),
        say: Callable[[str], None] = print,
    ):
        self._path, self._say = epath.Path(directory) / "metrics.jsonl", say
        known = {r["step"]: r for r in (*read_metrics(self._path), *remembered)}
        said = [record["gap"] for record in _read_lines(self._path) if "gap" in record]
        for first, last in _runs_of_missing(known, after_step):
            known[first] = {"gap": [first, last]}
            if [first, last] in said:
                continue  # an earlier process told of it
            say(f"{self._path}: steps {first} to {last} are lost, in the log only; a gap says so")
        lines: list[Record] = [known[step] for step in sorted(known) if 1 <= step <= after_step]
        self._text = "".join(json.dumps(line) + "\n" for line in lines)
        write_atomically(self._path, self._text)
        self._new: list[Record] = []
        self._remote = is_remote(self._path)
        self._file = None if self._remote else self._path.open("a")
        self._board = None if self._remote else Board(directory, after_step + 1, say)

    def write(self, record: Record) -> Record:
        """Logs one step; numbers JSON does not know (NaN, infinities) become null."""
        clean = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in record.items()
        }
        self._new.append(clean)
        line = json.dumps(clean) + "\n"
        if self._file:
            with naming(self._path):
                self._file.write(line)
                self._file.flush()  # whatever happens to the process, the system has the line
        else:
            self._text += line
        if self._board:
            self._board.write(record)
        return clean

    def sync(self) -> list[Record]:
        """Brings all lines to the disk, past a power cut; returns those since the last call."""
        if self._file:
            with naming(self._path):
                os.fsync(self._file.fileno())
        else:
            write_atomically(self._path, self._text)
        new, self._new = self._new, []
        return new

    def close(self) -> None:
        """Closes both logs."""
        if self._file:
            with naming(self._path):
                self._file.close()
        elif self._new:
            write_atomically(self._path, self._text)
        if self._board:
            self._board.close()


def _runs_of_missing(known: Iterable[int], end: int) -> list[tuple[int, int]]:
    """First and last step of every gap in 1 ... end."""
    present = [0, *sorted(step for step in known if 1 <= step <= end), end + 1]
    return [
        (before + 1, after - 1)
        for before, after in itertools.pairwise(present)
        if after > before + 1
    ]


class NoLog:
    """What a process keeps that leaves the log to another."""

    def write(self, record: Record) -> Record:
        """Drops it."""
        return record

    def sync(self) -> list[Record]:
        """Has nothing."""
        return []

    def close(self) -> None:
        """Has nothing to close."""


class Board:
    """TensorBoard's file, written at once and by this thread.

    The usual ``SummaryWriter`` hands its events to a thread through a queue: when the disk is full
    the thread dies, the queue fills and training waits for ever. This one says so and stops.
    """

    def __init__(
        self, directory: str | os.PathLike[str], purge_step: int, say: Callable[[str], None] = print
    ):
        folder = epath.Path(directory) / "tensorboard"
        self._say, self._folder = say, folder
        self._writer: EventsWriter | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(os.fspath(folder / "events"))
            # What an earlier process wrote for these steps is not shown.
            start = SessionLog(status=SessionLog.START)
            self._put(Event(step=purge_step, session_log=start))
        except OSError as error:
            self._give_up(error)

    def write(self, record: Record) -> None:
        """Adds one step's numbers."""
        for name, value in record.items():
            if name != "step":
                # As `tensorboardX.summary.scalar` does, without a warning for every NaN.
                number = Summary.Value(tag=name, simple_value=value)
                self._put(Event(step=record["step"], summary=Summary(value=[number])))

    def _put(self, event: Event) -> None:
        if self._writer is None:
            return
        try:
            self._writer.write_event(event)
            self._writer.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._writer = None
        self._say(
            f"{self._folder}: {error.strerror or error}; training goes on without TensorBoard"
        )

    def close(self) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()

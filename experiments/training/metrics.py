"""A run's log: ``metrics.jsonl`` for programs, TensorBoard for eyes, a progress line for now."""

import json
import math
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from experiments.files import write_atomically


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every complete line of a ``metrics.jsonl``; a killed process may have left half a line."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


class MetricsLog:
    """Appends one JSON object a step, and the same numbers to TensorBoard.

    Every line is handed to the operating system at once, so a checkpoint never gets ahead of the
    lines that led to it, whatever happens to the process.

    Args:
        directory: The run's folder.
        after_step: The step the run continues behind; later lines are dropped, as the run will
            compute them again.
    """

    def __init__(self, directory: Path, after_step: int):
        path = directory / "metrics.jsonl"
        kept = [record for record in read_metrics(path) if record["step"] <= after_step]
        if [record["step"] for record in kept] != list(range(1, after_step + 1)):
            raise ValueError(
                f"{path} holds {len(kept)} of the {after_step} steps before the newest checkpoint: "
                "it was edited or belongs to another run; use a new --output-dir"
            )
        write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = path.open("a")
        self._tensorboard = SummaryWriter(str(directory / "tensorboard"), purge_step=after_step + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Logs one step; numbers JSON does not know (NaN, infinities) become null."""
        clean = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in record.items()
        }
        self._file.write(json.dumps(clean) + "\n")
        self._file.flush()
        for name, value in record.items():
            if name != "step":
                self._tensorboard.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Flushes both logs."""
        self._file.close()
        self._tensorboard.close()


class NoLog:
    """What a process keeps that leaves the log to another."""

    def write(self, record: dict[str, Any]) -> None:
        """Drops it."""

    def close(self) -> None:
        """Has nothing to flush."""


class ProgressLine:
    """A live bar on a terminal, elsewhere one plain line every few seconds.

    Args:
        start: Steps already done.
        steps: Steps in the whole run.
        tokens_per_step: To turn steps into tokens/s.
        every: Seconds between two plain lines.
    """

    def __init__(self, start: int, steps: int, tokens_per_step: int, every: float = 5.0):
        self._console = Console()
        self._steps, self.tokens_per_step, self._every = steps, tokens_per_step, every
        self._last: tuple[int, float] | None = None  # step and time of the last line
        self._rate = 0.0  # steps a second since
        self._bar = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=None),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=steps, completed=start)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def update(self, step: int, loss: float) -> None:
        """Shows that ``step`` ended with ``loss``."""
        now, live = time.monotonic(), self._console.is_terminal
        if self._last is None:  # the first step, too, pays for more than itself
            self._last = step, now
        elapsed = now - self._last[1]
        if elapsed > (0.5 if live else self._every) or step == self._steps:
            if step > self._last[0]:
                self._rate = (step - self._last[0]) / elapsed
            self._last = step, now
            if not live:
                left = f"{(self._steps - step) / self._rate:.0f} s left" if self._rate else ""
                self.say(f"step {step}/{self._steps}  {self._numbers(loss)}  {left}")
        if live:
            self._bar.update(self._task, completed=step, description=self._numbers(loss))

    def skip_time(self) -> None:
        """Leaves out of the rate what passed since the last step, such as an evaluation."""
        self._last = None

    def say(self, text: str) -> None:
        """Prints a line that stays, above the bar."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def _numbers(self, loss: float) -> str:
        return f"loss {loss:.4f}  {self._rate * self.tokens_per_step:,.0f} tokens/s"

"""How far a run is: a live bar on a terminal, a line a minute in a log file."""

import datetime
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

# Narrower terminals get the numbers without the bar: nothing is cut.
_ROOM_FOR_A_BAR = 72


class ProgressLine:
    """A live bar on a terminal, elsewhere one plain line every so often.

    Args:
        steps: Steps in the whole run.
        every: Seconds between two plain lines.
        console: Where it is shown; standard output by default.
    """

    def __init__(self, steps: int, every: float = 60.0, console: Console | None = None):
        self._console = console or Console()
        self._live = self._console.is_terminal
        self._steps, self._every = steps, every
        self.tokens_per_step = 0
        self._last_line = time.monotonic()
        self._since: float | None = None  # when the last step ended, unless time was skipped
        self._timed, self._seconds = 0.0, 0.0  # steps, and the time they took, for the rate
        numbers: list[ProgressColumn] = [
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.description}"),
        ]
        if self._console.width >= _ROOM_FOR_A_BAR:
            numbers[1:1] = [BarColumn(bar_width=None)]
            numbers += [TimeRemainingColumn()]
        self._bar = Progress(*numbers, console=self._console, disable=not self._live)
        self._task = self._bar.add_task("starting", total=steps)

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
        now = time.monotonic()
        if self._since is not None:
            self._timed, self._seconds = self._timed + 1, self._seconds + now - self._since
        self._since = now
        if self._live:
            self._bar.update(self._task, completed=step, description=self._numbers(loss))
        elif now - self._last_line >= self._every or step == self._steps:
            self._last_line = now
            self.say(f"step {step}/{self._steps}  {self._numbers(loss)}{self._left(step)}")
        if self._seconds > self._every:  # the rate is that of about the last minute
            self._timed, self._seconds = self._timed / 2, self._seconds / 2

    def skip_time(self) -> None:
        """Leaves out of the rate what passes until the next step ends, such as an evaluation."""
        self._since = None

    def say(self, text: str) -> None:
        """Prints a line that stays, above the bar."""
        self._console.print(text, highlight=False, soft_wrap=True, markup=False)

    def _numbers(self, loss: float) -> str:
        shown = f"loss {loss:.4f}"
        if self._seconds:
            shown += f"  {self._timed / self._seconds * self.tokens_per_step:,.0f} tokens/s"
        return shown

    def _left(self, step: int) -> str:
        if not self._timed or step == self._steps:
            return ""
        seconds = round((self._steps - step) * self._seconds / self._timed)
        return f"  {datetime.timedelta(seconds=seconds)} left"

"""SIGTERM and SIGINT: finish the update, save, leave.

Schedulers (Slurm, spot machines, Kubernetes) send SIGTERM and kill some time later. Python runs a
signal's handler between two of its own instructions, so never while XLA compiles, which may take
minutes; and a ``KeyboardInterrupt`` that falls into a callback of compiled code is lost. So a
thread of its own waits for signals here.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Self

# "Try again": what sysexits.h calls EX_TEMPFAIL. Nothing is wrong with the run.
RESUME_ME = 75
GRACE_SECONDS = 25.0  # Slurm and Kubernetes kill after 30

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def heard(again: float = 0.5) -> Iterator[None]:
    """Before training: SIGTERM and SIGINT raise ``KeyboardInterrupt`` until it arrives here.

    Once is not enough: what is raised inside a callback, such as the one that JAX gives the garbage
    collector, is dropped, and most of what runs while a program is traced is in one.

    Args:
        again: Seconds until it is raised again.
    """

    def interrupt(number: int, frame: object) -> None:  # noqa: ARG001
        signal.setitimer(signal.ITIMER_REAL, again)
        raise KeyboardInterrupt

    numbers = (*_SIGNALS, signal.SIGALRM)
    handlers = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)


class InterruptedRun(Exception):  # noqa: N818  it is no error
    """The run was asked to leave, and what it did is saved."""

    exit_code = RESUME_ME


class Interrupt:
    """Whether the process was asked to leave.

    The first signal sets :attr:`requested`, for the loop to see after its update, and begins a
    grace period at whose end the process leaves in any case. A second signal leaves at once.
    Within :meth:`nothing_to_lose`, such as while compiling, so does the first.

    Signals belong to the main thread: elsewhere this never requests anything.

    Args:
        grace: Seconds from the first signal on.
        leave: Ends the process with an exit code.
    """

    def __init__(self, grace: float = GRACE_SECONDS, leave: Callable[[int], object] = os._exit):
        self.requested = False
        self._grace, self._leave = grace, leave
        self._may_lose = 0

    def __enter__(self) -> Self:
        self._active = threading.current_thread() is threading.main_thread()
        if self._active:
            self._receiver, self._sender = socket.socketpair()
            self._sender.setblocking(False)
            self._handlers = {number: signal.getsignal(number) for number in _SIGNALS}
            for number in _SIGNALS:
                signal.signal(number, lambda *_: None)
            self._wakeup = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
            self._watcher = threading.Thread(target=self._watch, daemon=True)
            self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._active:
            return
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._sender.close()  # ends the watcher
        self._watcher.join()
        self._receiver.close()

    @contextlib.contextmanager
    def nothing_to_lose(self) -> Iterator[None]:
        """A part that may be left at any moment."""
        self._may_lose += 1
        try:
            if self.requested:
                self._go(RESUME_ME, "")
            yield
        finally:
            self._may_lose -= 1

    def _watch(self) -> None:
        while received := self._next(None):
            if self._may_lose:
                self._go(RESUME_ME, "interrupted; the same command continues")
                continue
            self.requested = True
            _say(
                f"{signal.Signals(received).name}: saving and leaving; a second one leaves at once"
            )
            second = self._next(self._grace)
            if second:
                self._go(128 + second, "left at once; the newest checkpoint is what remains")
            elif second is None:
                self._go(RESUME_ME, f"not saved within {self._grace:g} s; leaving")

    def _next(self, timeout: float | None) -> int | None:
        """The next signal's number; 0 at the end, None if there was none in time."""
        self._receiver.settimeout(timeout)
        try:
            while data := self._receiver.recv(1):
                if data[0] in _SIGNALS:
                    return data[0]
        except TimeoutError:
            return None
        return 0

    def _go(self, code: int, text: str) -> None:
        if text:
            _say(text)
        self._leave(code)


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)

"""What every update reports, and when a run has gone too far astray to come back."""

import math
from collections.abc import Callable
from typing import Any

import jax

from experiments.training.metrics import Log
from experiments.training.progress import ProgressLine

# A single spike may pass; after this many bad updates in a row nothing comes back.
PATIENCE = 20

_CURE = "lower --lr, lengthen --warmup-steps or set --grad-clip, in a new --output-dir"


class DivergedError(RuntimeError):
    """Training can't come back: NaN or infinite numbers, or no gradient at all."""


class DelayedReport:
    """Reports every update while the next one runs, so that Python never keeps the device waiting.

    An update is bad if its loss or its gradient's norm is NaN or infinite, or if the gradient is
    zero to the last bit: then nothing learns, whatever the loss says.

    Args:
        log: Gets every update's numbers.
        line: Shows them.
    """

    def __init__(self, log: Log, line: ProgressLine):
        self._log, self._line = log, line
        self._waiting: tuple[int, dict[str, jax.Array]] | None = None
        self.bad_steps = 0  # in a row, up to the last update reported
        self.last: dict[str, Any] = {}  # the last record

    def submit(self, step: int, values: dict[str, jax.Array]) -> None:
        """Hands in an update just dispatched; reports the one before."""
        self.flush()
        self._waiting = step, dict(values)

    def add(self, values: dict[str, Any]) -> None:
        """Adds numbers to the update handed in last."""
        assert self._waiting is not None
        self._waiting[1].update(values)

    def flush(self) -> None:
        """Waits for the update handed in last and reports it.

        Raises:
            DivergedError: If the last ``PATIENCE`` updates were all bad.
        """
        if self._waiting is None:
            return
        (step, values), self._waiting = self._waiting, None
        record = {"step": step} | {name: float(value) for name, value in values.items()}
        if "eval_loss" in record:
            record["perplexity"] = perplexity(record["eval_loss"])
            self._line.say(f"step {step}  validation loss {record['eval_loss']:.4f}")
        self.last = self._log.write(record)
        self._line.update(step, record["train_loss"])
        wrong = _wrong(record)
        self.bad_steps = self.bad_steps + 1 if wrong else 0
        if self.bad_steps >= PATIENCE:
            raise DivergedError(f"{wrong} since step {step - PATIENCE + 1}: {_CURE}")


def perplexity(loss: float) -> float:
    """``exp(loss)``, infinite where a float64 ends."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def check_weights(finite: Callable[[Any], jax.Array], params: Any, step: int) -> None:
    """Raises :class:`DivergedError` if a weight is NaN or infinite: it stays so for ever."""
    if not bool(finite(params)):
        raise DivergedError(f"weights are NaN or infinite at step {step}: {_CURE}")


def _wrong(record: dict[str, Any]) -> str:
    if not math.isfinite(record["train_loss"]):
        return "the loss has been NaN or infinite"
    norm = record.get("grad_norm", 1.0)
    if not math.isfinite(norm):
        return "the gradient has been NaN or infinite"
    return "" if norm else "the gradient has been exactly zero"

"""One training loop, for pretraining and fine-tuning alike, that loses nothing.

Who trains says what (:class:`Task`) and how long (:class:`Plan`); the loop knows neither model nor
text. It updates, evaluates, logs and saves, continues from the newest good checkpoint, and leaves
in order when it is told to. In outline, as ``experiments/training/pretraining.py`` does it::

    folder = RunFolder(directory)
    folder.create()
    with held(folder.path) as still_ours:         # no second process beside this one
        folder.claim(settings, defaults)          # refuse another run's folder
        with closing(Checkpoints(folder.path / "checkpoints")) as checkpoints:
            progress = train(task, plan, folder.path, checkpoints, still_ours, settings)
        if progress.step == plan.steps:
            folder.finish({"eval_loss": progress.last["eval_loss"]})

Everything that decides how the run goes on is in ``TrainState`` (arrays) or in the position of
``Task.data`` (a value for JSON): so a run in parts is the whole run, bit for bit.
"""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, Protocol

import jax
from jax.experimental import multihost_utils

from experiments.mesh import is_first_process
from experiments.training.checkpoint import Checkpoints, all_finite
from experiments.training.interrupt import Interrupt, InterruptedRun
from experiments.training.metrics import Log, MetricsLog, NoLog
from experiments.training.progress import ProgressLine
from experiments.training.report import DelayedReport, check_weights, perplexity
from experiments.training.step import TrainState, lower_update


class Position(Protocol):
    """Where the data stands, such as a Grain iterator."""

    def get_state(self) -> Any:
        """A value for JSON, the same in every process."""

    def set_state(self, state: Any) -> None:
        """Goes where another stood."""

    def close(self) -> None:
        """Frees what reads ahead."""


Between = Callable[[int, TrainState], TrainState]


def _nothing_between(formats: Any) -> Between:  # noqa: ARG001
    return lambda step, state: state  # noqa: ARG005


@dataclasses.dataclass(frozen=True)
class Task:
    """What is trained.

    Attributes:
        init_state: The first state; traced for shapes, jitted for arrays.
        abstract_state: Its shapes, with shardings on a mesh.
        train_step: Jitted ``(state, batch) -> (state, values)``, the state donated; among the
            values, scalars, are ``train_loss`` and ``grad_norm``.
        next_batch: The next update's batch on its devices, and the number of its tokens; moves
            ``data``.
        data: Where the training data stands.
        evaluate: Numbers of a state on held-out data, among them ``eval_loss``.
        example: A batch like all others, for which the update is compiled ahead; None if batches
            differ in size.
        shardings: How the state is spread over a mesh.
        begin: From how the state lies in memory, the first state in arrays: for weights that are
            read, not drawn. By default ``init_state``, jitted.
        make_between: From how the state lies in memory, a function that makes the state behind a
            step ready for the next update.
    """

    init_state: Callable[[], TrainState]
    abstract_state: TrainState
    train_step: Any
    next_batch: Callable[[TrainState], tuple[Any, int]]
    data: Position
    evaluate: Callable[[TrainState], dict[str, jax.Array]]
    example: Any = None
    shardings: Any = None
    begin: Callable[[Any], TrainState] | None = None
    make_between: Callable[[Any], Between] = _nothing_between


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long, and what happens how often, in updates."""

    steps: int
    stop: int
    eval_every: int
    checkpoint_every: int

    def evaluates(self, step: int) -> bool:
        """Whether this update is followed by an evaluation; the last one is."""
        return step % self.eval_every == 0 or step == self.steps

    def saves(self, step: int) -> bool:
        """Whether this update is followed by a checkpoint; the last one is."""
        return step % self.checkpoint_every == 0 or step == self.stop


@dataclasses.dataclass
class Progress:
    """How far a run has come, over all its processes' lives."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    last: dict[str, Any] = dataclasses.field(default_factory=dict)  # the last step's record


def train(
    task: Task,
    plan: Plan,
    directory: str | os.PathLike[str],
    checkpoints: Checkpoints,
    still_ours: Callable[[], None] = lambda: None,
    settings: Any = None,
) -> Progress:
    """Trains up to ``plan.stop``, from wherever the checkpoints stand.

    Args:
        task: What.
        plan: How long.
        directory: Gets the log.
        checkpoints: Read at the start, written at the plan's times.
        still_ours: Raises if another process has taken the folder; asked before every save.
        settings: Kept in every checkpoint, so that a lost ``config.json`` can be written again.

    Raises:
        DivergedError: If nothing finite comes any more.
        CheckpointError: If a checkpoint can't be written, or none can be read.
        InterruptedRun: After a SIGTERM or SIGINT, once everything is saved.
    """
    with (
        contextlib.ExitStack() as stack,
        ProgressLine(plan.steps) as line,
        Interrupt() if jax.process_count() == 1 else contextlib.nullcontext() as interrupt,
    ):
        with interrupt.nothing_to_lose() if interrupt else contextlib.nullcontext():
            train_step, formats = task.train_step, task.shardings
            if checkpoints.latest_step < plan.stop and task.example is not None:
                train_step, formats = _compile(task, line)
            state, progress, remembered = _begin(task, checkpoints, formats, line)
        log: Log = NoLog()
        if is_first_process():
            log = MetricsLog(directory, progress.step, remembered, line.say)
        stack.enter_context(closing(log))
        report = DelayedReport(log, line)
        between = task.make_between(formats)
        save = _saver(task, checkpoints, log, report, still_ours, settings)
        began = time.perf_counter()
        for step in range(progress.step + 1, plan.stop + 1):
            batch, tokens = task.next_batch(state)
            line.tokens_per_step = tokens
            state, values = train_step(state, batch)
            report.submit(step, values)
            state = between(step, state)
            progress.step, progress.tokens = step, progress.tokens + tokens
            checkpoints.check()
            leaving = _asked_to_leave(interrupt, step)
            if not (plan.evaluates(step) or plan.saves(step) or leaving):
                continue
            jax.block_until_ready(state)
            progress.seconds += time.perf_counter() - began
            if plan.evaluates(step):
                report.add(task.evaluate(state))
            line.skip_time()
            if plan.saves(step) or leaving:
                report.flush()  # a checkpoint never gets ahead of the log
                saved = save(state, progress)
            if leaving and step < plan.stop:
                checkpoints.wait()
                what = f"saved step {step}" if saved else "left between two bad updates"
                raise InterruptedRun(f"{what}; the same command continues")
            began = time.perf_counter()
        report.flush()
        checkpoints.wait()
        progress.last = report.last or progress.last
        if progress.step == plan.steps and "eval_loss" not in progress.last:
            # Killed behind its last checkpoint, by a program whose checkpoints did not know.
            loss = float(task.evaluate(state)["eval_loss"])
            progress.last = {"eval_loss": loss, "perplexity": perplexity(loss)}
        return progress


def _compile(task: Task, line: ProgressLine) -> tuple[Any, Any]:
    """The update, compiled, and how it wants the state to lie in memory."""
    line.say("compiling the update ...")
    began = time.perf_counter()
    compiled = lower_update(task.train_step, task.abstract_state, task.example).compile()
    line.say(f"compiled in {time.perf_counter() - began:.1f} s")
    return compiled, compiled.input_formats[0][0]


def _begin(
    task: Task, checkpoints: Checkpoints, formats: Any, line: ProgressLine
) -> tuple[TrainState, Progress, list[dict[str, Any]]]:
    """The state to go on from, how far it has come, and what its checkpoint knows of the log.

    Called only once the update is compiled, so that there is never a second copy of the state in
    another order.
    """
    found = checkpoints.restore(task.abstract_state)
    if found is None:
        begin = task.begin or (lambda formats: jax.jit(task.init_state, out_shardings=formats)())
        return begin(formats), Progress(), []
    step, state, note = found
    if formats is not None:
        state = jax.device_put(state, formats, donate=True)
    task.data.set_state(note["data"])
    records = note.get("records", [])
    line.say(f"continuing after step {step}")
    progress = Progress(step, last=records[-1] if records else {})
    if "tokens" in note:  # version 0 did not count them: then the rate is that of the rest
        progress.seconds, progress.tokens = note["seconds"], note["tokens"]
    return state, progress, records


def _saver(
    task: Task,
    checkpoints: Checkpoints,
    log: Log,
    report: DelayedReport,
    still_ours: Callable[[], None],
    settings: Any,
) -> Callable[[TrainState, Progress], bool]:
    """Saves a state if it is worth going on from, and says whether it was."""

    def save(state: TrainState, progress: Progress) -> bool:
        check_weights(all_finite, state.params, progress.step)
        if report.bad_steps:
            return False
        still_ours()
        note = {
            "seconds": progress.seconds,
            "tokens": progress.tokens,
            "data": task.data.get_state(),
            "records": log.sync(),
            "settings": settings,
        }
        checkpoints.save(progress.step, state, note, report.last.get("eval_loss"))
        return True

    return save


def _asked_to_leave(interrupt: Interrupt | None, step: int) -> bool:
    """Whether this step is the last for now: the same answer in every process."""
    if interrupt is not None:
        return interrupt.requested
    return multihost_utils.reached_preemption_sync_point(step)

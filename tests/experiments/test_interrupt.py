"""Signals and second processes: who is told to leave saves first; who comes second is refused."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax.numpy as jnp
import pytest
from etils import epath
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem

from experiments.training.checkpoint import Checkpoints
from experiments.training.folder import RunFolder
from experiments.training.interrupt import RESUME_ME, Interrupt, InterruptedRun, heard
from experiments.training.lock import NAME, InUseError, Lease, held
from experiments.training.metrics import MetricsLog, read_metrics
from tests.experiments.tiny_task import ROWS, log_of, make_task, run


def until(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def signal_at(step: int, number: signal.Signals) -> dict:
    """A task whose process is sent a signal while this step's batch is made."""
    task = make_task()
    count = iter(range(10**6))

    def next_batch(state):
        if next(count) == step - 1:
            signal.raise_signal(number)
            time.sleep(0.1)  # for the thread that waits for it
        return jnp.asarray(next(task.data)), ROWS

    return {"next_batch": next_batch, "data": task.data}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_run_goes_on_bit_for_bit(tmp_path, number):
    run(tmp_path / "whole")
    with pytest.raises(InterruptedRun, match="saved step 7"):
        run(tmp_path / "run", every=100, **signal_at(7, number))
    assert (tmp_path / "run" / "checkpoints" / "7").is_dir()
    assert InterruptedRun.exit_code == RESUME_ME == 75
    run(tmp_path / "run", every=100)
    assert log_of(tmp_path / "run") == log_of(tmp_path / "whole")


def test_an_interruption_that_a_callback_drops_comes_again():
    def handlers():
        return [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)]

    before = handlers()
    with pytest.raises(KeyboardInterrupt), heard(again=0.05):  # noqa: PT012
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        time.sleep(20)
    assert handlers() == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_handlers_are_given_back(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    threads = set(threading.enumerate())
    with Interrupt():
        assert signal.getsignal(signal.SIGINT) != before[1]
        assert set(threading.enumerate()) - threads  # the watcher
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert set(threading.enumerate()) <= threads


def test_a_second_signal_leaves_at_once():
    codes: list[int] = []
    with Interrupt(leave=codes.append) as interrupt:
        signal.raise_signal(signal.SIGTERM)
        until(lambda: interrupt.requested)
        assert codes == []
        signal.raise_signal(signal.SIGINT)
        until(lambda: codes)
    assert codes == [128 + signal.SIGINT]


def test_the_grace_period_ends():
    codes: list[int] = []
    with Interrupt(grace=0.1, leave=codes.append):
        signal.raise_signal(signal.SIGTERM)
        until(lambda: codes)
    assert codes == [RESUME_ME]


def test_while_nothing_can_be_lost_the_first_signal_leaves_at_once():
    """Even if the main thread never comes back to Python, as while XLA compiles."""
    codes: list[int] = []
    with Interrupt(leave=codes.append) as interrupt:
        with interrupt.nothing_to_lose():
            # The handler itself can only run in this thread; the one who waits needs none.
            os.kill(os.getpid(), signal.SIGINT)
            until(lambda: codes)
        assert not interrupt.requested
    assert codes == [RESUME_ME]


def test_a_second_process_is_refused_and_the_first_undisturbed(tmp_path):
    seen = []

    def next_batch(state):
        if not seen:
            with pytest.raises(InUseError) as caught:
                run(tmp_path / "run")
            seen.append(str(caught.value))
        return jnp.asarray(next(task.data)), ROWS

    task = make_task()
    run(tmp_path / "run", next_batch=next_batch, data=task.data)
    assert f"is in use by process {os.getpid()} on " in seen[0]
    run(tmp_path / "alone")
    assert log_of(tmp_path / "run") == log_of(tmp_path / "alone")
    run(tmp_path / "run")  # released: finished, nothing to do


def test_a_killed_holder_releases_the_folder(tmp_path):
    holder = (
        "import sys, time; from experiments.training.lock import held\n"
        "with held(sys.argv[1]): print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(InUseError, match=f"process {child.pid} on"), held(tmp_path):
            pass
        child.kill()
    with held(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["process"] == os.getpid()


class Bucket(MemoryFileSystem):
    """An object store in memory, under the address of a real one."""

    protocol = ("gs", "gcs")
    store: dict = {}  # noqa: RUF012  as fsspec has it
    pseudo_dirs: list = [""]  # noqa: RUF012

    def __init__(self, **options: object):
        super().__init__()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("gs://").strip("/")


@pytest.fixture
def bucket(monkeypatch):
    backend.fsspec_backend._get_filesystem.cache_clear()
    for name in ("gs", "gcs"):
        monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, name, Bucket)
    Bucket.clear_instance_cache()
    Bucket.store.clear()
    yield Bucket.store
    backend.fsspec_backend._get_filesystem.cache_clear()


def test_a_lease_in_an_object_store_is_for_one(bucket):
    with held("gs://bucket/run", seconds=0.4) as still_ours:
        in_use = f"gs://bucket/run is in use by process {os.getpid()}"
        with pytest.raises(InUseError, match=in_use), held("gs://bucket/run", seconds=0.4):
            pass
        still_ours()
        time.sleep(0.5)  # longer than a lease: it was renewed
        still_ours()
    assert not epath.Path("gs://bucket/run", NAME).exists()


def test_the_lease_of_a_dead_holder_is_taken(bucket):
    dead = Lease(epath.Path("gs://bucket/run") / NAME)
    assert dead._create()
    with held("gs://bucket/run", seconds=0.2) as still_ours:
        still_ours()


def test_who_lost_the_lease_is_told_before_it_saves(bucket):
    with held("gs://bucket/run", seconds=0.2) as still_ours:
        epath.Path("gs://bucket/run", NAME).write_text('{"token": "other", "process": 7}')

        def lost() -> bool:
            try:
                still_ours()
            except InUseError as error:
                return "process 7" in str(error)
            return False

        until(lost)
    assert epath.Path("gs://bucket/run", NAME).exists()  # the other's stays


def test_a_run_in_an_object_store_keeps_settings_log_and_summary_there(bucket):
    folder = RunFolder("gs://bucket/some/run")
    folder.create()
    folder.claim({"run": {"lr": 1.0}}, {})
    with pytest.raises(ValueError, match=r"run.lr: 1.0 there, 2.0 now"):
        folder.claim({"run": {"lr": 2.0}}, {})
    log = MetricsLog(folder.path, 0)
    log.write({"step": 1, "train_loss": 2.0})
    log.sync()
    log.write({"step": 2, "train_loss": 1.5})
    log.close()
    assert [record["step"] for record in read_metrics("gs://bucket/some/run/metrics.jsonl")] == [
        1,
        2,
    ]
    again = MetricsLog(folder.path, 1)
    again.write({"step": 2, "train_loss": 1.25})
    again.close()
    assert [r["train_loss"] for r in read_metrics(folder.path / "metrics.jsonl")] == [2.0, 1.25]
    assert folder.summary is None
    folder.finish({"steps": 2})
    assert folder.summary == {"steps": 2}
    assert {Path(name).name for name in bucket} == {"config.json", "metrics.jsonl", "summary.json"}


def test_checkpoints_go_to_an_object_store_untouched(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "experiments.training.checkpoint.ocp.training.Checkpointer",
        lambda directory, **options: asked.append(directory),
    )
    monkeypatch.setattr(epath.Path("gs://x").__class__, "is_dir", lambda self: False)

    Checkpoints("gs://bucket/run/checkpoints")
    assert [os.fspath(path) for path in asked] == ["gs://bucket/run/checkpoints"]

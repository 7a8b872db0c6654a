"""What breaks on disk: damaged checkpoints, lost logs, full disks; the run goes on or says why."""

import errno
import os
import re
import resource
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.files import write_atomically
from experiments.training import metrics
from experiments.training.checkpoint import CheckpointError, Checkpoints
from experiments.training.checksums import checksums
from experiments.training.metrics import MetricsLog
from tests.experiments import tiny_task
from tests.experiments.tiny_task import log_of, run


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> list[dict]:
    """The log of a run that nothing disturbed."""
    directory = tmp_path_factory.mktemp("whole")
    run(directory)
    assert len(log_of(directory)) == 20
    return log_of(directory)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A run that stopped at step 8 with checkpoints 4 and 8, both evaluated."""
    directory = tmp_path_factory.mktemp("stopped")
    run(directory, stop=8)
    return directory


@pytest.fixture
def copy(stopped, tmp_path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def files_of(checkpoint: Path) -> list[str]:
    return sorted(
        p.relative_to(checkpoint).as_posix() for p in checkpoint.rglob("*") if p.is_file()
    )


def empty(path: Path) -> None:
    path.write_bytes(b"")


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for i in np.random.default_rng(0).integers(len(data), size=3):
        data[i] ^= 1
    path.write_bytes(data)


def test_a_run_in_parts_is_the_whole_run(whole, copy):
    run(copy)
    assert log_of(copy) == whole


def test_whatever_damages_the_newest_checkpoint_the_run_ends_the_same(whole, stopped, tmp_path):
    """Each of its files, in each of four ways: found out, said, and computed again."""
    outcomes = {}
    for name in files_of(stopped / "checkpoints" / "8"):
        for harm in (empty, halve, flip, Path.unlink):
            directory = tmp_path / "run"
            shutil.copytree(stopped, directory)
            harm(directory / "checkpoints" / "8" / name)
            said: list[str] = []
            checkpoints = Checkpoints(directory / "checkpoints", say=said.append)
            step, state, note = checkpoints.restore(jax.eval_shape(tiny_task.init_state))
            checkpoints.close()
            assert step == int(state.step)  # never the numbers of a damaged one
            assert note["records"] == whole[step - 4 : step]
            if step == 4:
                assert re.search(r"checkpoint 8 is damaged \(.+\); going back to 4", said[-1])
                assert not (directory / "checkpoints" / "8").exists()
            outcomes[name, harm.__name__] = step
            shutil.rmtree(directory)
    data = [name for name, _ in outcomes if "ocdbt.process_0/d/" in name]
    assert data
    assert {outcomes[name, "flip"] for name in data} == {4}
    assert {outcomes["_CHECKPOINT_METADATA", harm] for harm in ("empty", "halve", "unlink")} == {4}


def test_a_flipped_bit_is_computed_again_bit_for_bit(whole, copy, capsys):
    for path in (copy / "checkpoints/8/state/ocdbt.process_0/d").iterdir():
        flip(path)
    run(copy)
    assert "checkpoint 8 is damaged" in capsys.readouterr().out
    assert log_of(copy) == whole
    steps = {path.name for path in (copy / "checkpoints").iterdir()}
    assert steps == {"8.damaged", "16", "20"}


def test_no_good_checkpoint_at_all_is_refused(copy):
    for path in (copy / "checkpoints").glob("*/state/ocdbt.process_0/d/*"):
        empty(path)
    with pytest.raises(CheckpointError, match=r"no checkpoint .* can be read; delete that folder"):
        run(copy)
    assert {path.name for path in (copy / "checkpoints").iterdir()} == {"4", "8"}


def test_an_empty_folder_is_no_checkpoint(whole, copy):
    (copy / "checkpoints" / "99").mkdir()
    run(copy)
    assert log_of(copy) == whole


def test_the_checkpoint_mends_the_end_of_the_log(whole, copy):
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_text("".join(lines[:5]) + "\x00" * 50)
    run(copy)
    assert log_of(copy) == whole


def test_a_lost_log_leaves_a_gap_and_nothing_else(whole, copy, capsys):
    (copy / "metrics.jsonl").unlink()
    run(copy)
    first = (copy / "metrics.jsonl").read_text().splitlines()[0]
    assert first == '{"gap": [1, 4]}'
    assert log_of(copy) == whole[4:]
    assert "steps 1 to 4 are lost, in the log only" in capsys.readouterr().out
    said: list[str] = []
    MetricsLog(copy, len(whole), say=said.append).close()
    assert not said  # not once more at every start


def test_the_log_is_on_disk_before_a_checkpoint_is(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_size))
    log = MetricsLog(tmp_path, 0)
    log.write({"step": 1, "x": 1.0})
    assert log.sync() == [{"step": 1, "x": 1.0}]
    assert synced[-1] == (tmp_path / "metrics.jsonl").stat().st_size > 0
    assert log.sync() == []
    log.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "uint8", "int32", "bool", "int4"])
def test_any_changed_number_changes_the_checksum(dtype):
    x = jnp.asarray(np.arange(24).reshape(4, 6) % 7 - (dtype[0] != "u") * 3).astype(dtype)
    before = checksums({"x": x})["['x']"]
    assert before[:2] == [dtype, [4, 6]]
    other = jnp.logical_not(x[2, 3]) if dtype == "bool" else x[2, 3] + jnp.ones((), dtype)
    assert checksums({"x": x.at[2, 3].set(other)})["['x']"] != before
    assert checksums({"x": x[::-1]})["['x']"] != before  # places count too
    assert checksums({"x": jnp.copy(x)})["['x']"] == before


def test_minus_zero_and_nan_are_numbers_too():
    sums = {
        checksums(jnp.full(3, value))[""][2] for value in (0.0, -0.0, jnp.nan, jnp.inf, -jnp.inf)
    }
    assert len(sums) == 5


class FullDisk:
    """A writer on a disk that has just filled up."""

    def __init__(self, path: str):
        self.path = path

    def write_event(self, event: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)

    def flush(self) -> None:
        self.write_event(None)

    close = flush


def test_without_room_for_tensorboard_training_goes_on(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(metrics, "EventsWriter", FullDisk)
    run(tmp_path)
    assert log_of(tmp_path) == whole
    said = capsys.readouterr().out
    assert said.count("No space left on device; training goes on without TensorBoard") == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_checkpoint_that_has_no_room_stops_the_run_in_one_line(whole, copy, caplog):
    """Files above a size can't be written, as on a full disk; what was there stays."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    log = (copy / "metrics.jsonl").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (log + 1500, before[1]))
    try:
        with pytest.raises(CheckpointError, match="make room, then the same command") as caught:
            run(copy, eval_every=100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "checkpoint 12 could not be written" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "checkpoint 8 remains" in str(caught.value)
    # The system's words, even if Orbax put long paths before them; and no traceback in the log.
    assert "File too large" in str(caught.value)
    assert not [record for record in caplog.records if record.exc_info]
    run(copy)
    assert log_of(copy) == whole


def test_a_full_disk_names_the_file_that_it_has_no_room_for(tmp_path):
    """``/dev/full`` is a disk without room: the system's own error names no file."""
    log = MetricsLog(tmp_path, 0)
    log._file = open("/dev/full", "a")  # noqa: SIM115  closed by the log
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        log.write({"step": 1})
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        log.close()  # what is still in its buffer
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(OSError, match=r"settings\.json"):
            write_atomically(tmp_path / "settings.json", "x" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.glob("settings*"))


def test_two_hundred_checkpoints_leave_no_file_open(tmp_path):
    state = {"x": jnp.arange(3.0)}
    checkpoints = Checkpoints(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    checkpoints.save(1, state, {})
    checkpoints.wait()
    limit = max(map(int, os.listdir("/proc/self/fd"))) + 40
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        for step in range(2, 202):
            checkpoints.save(step, state, {})
        checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["200", "201"]

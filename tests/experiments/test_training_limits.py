"""Runs that can't go well: said at the start, or stopped before good checkpoints are lost."""

import contextlib
import functools
import gzip
import hashlib
import http.server
import json
import shutil
import threading
import urllib.error
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import pretrain
from experiments.files import one_line
from experiments.llama.configs import load_model_config
from experiments.text import streaming
from experiments.text.folder import read_folder
from experiments.text.packages import DownloadError, Package
from experiments.text.sdist import fetch_by_hash
from experiments.training.checkpoint import Checkpoints
from experiments.training.config import parse
from experiments.training.folder import RunFolder
from experiments.training.loop import Progress
from experiments.training.metrics import MetricsLog, read_metrics
from experiments.training.pretraining import (
    defaults,
    load_data,
    make_task,
    resolve_model,
    resolved,
    summarize,
)
from experiments.training.progress import ProgressLine
from experiments.training.report import PATIENCE, DelayedReport, DivergedError, perplexity
from experiments.training.step import TrainState
from tests.experiments import tiny_task
from tests.experiments.tiny_run import write_inputs
from tests.experiments.tiny_task import log_of, run


@pytest.fixture(scope="module")
def flags(tmp_path_factory) -> list[str]:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.mark.parametrize(
    ("norm", "message"),
    [
        (0.0, "gradient has been exactly zero since step 3"),
        (np.nan, "gradient has been NaN or infinite since step 3"),
    ],
)
def test_a_gradient_that_is_none_stops_the_run(tmp_path, norm, message):
    log = MetricsLog(tmp_path, 0)
    report = DelayedReport(log, ProgressLine(100))

    def submit_all() -> None:
        for step in range(1, 100):
            values = {"train_loss": 5.5, "grad_norm": norm if step > 2 else 1.0}
            report.submit(step, {k: jnp.float32(v) for k, v in values.items()})

    with pytest.raises(DivergedError, match=message):
        submit_all()
    log.close()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2 + PATIENCE


def poisoned_at(step: int) -> dict:
    """A task whose weights become NaN at a step, while loss and gradient stay finite."""

    @jax.jit
    def poison(state: TrainState) -> TrainState:
        w = state.params["w"].at[0, 0].set(jnp.nan)
        return state._replace(params={**state.params, "w": w})

    return {"make_between": lambda _: lambda at, state: poison(state) if at == step else state}


def test_weights_of_nan_never_replace_good_checkpoints(tmp_path):
    with pytest.raises(DivergedError, match="weights are NaN or infinite at step 12"):
        run(tmp_path, eval_every=100, **poisoned_at(12))
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"4", "8"}


def test_nothing_is_saved_between_bad_updates(tmp_path):
    @jax.jit
    def step(state, x):
        new, values = tiny_task.train_step.__wrapped__(state, x)
        bad = jnp.where(state.step >= 9, jnp.nan, values["train_loss"])
        return new, values | {"train_loss": bad}

    run(tmp_path, eval_every=100, train_step=step)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"4", "8"}


def test_the_best_evaluated_checkpoint_stays(tmp_path):
    losses = iter([0.5, 0.1, 0.7, 0.9, 0.8])
    run(tmp_path, eval_every=4, evaluate=lambda _: {"eval_loss": jnp.float32(next(losses))})
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"8", "16", "20"}


def test_a_loss_beyond_exp_is_a_summary_all_the_same():
    assert perplexity(89.0) == pytest.approx(np.exp(89.0))
    assert perplexity(1e4) == np.inf
    state = TrainState(jnp.int32(0), {"w": jnp.ones(3)}, optax.EmptyState())
    progress = Progress(10, 1.0, 100, {"eval_loss": 1e4, "perplexity": None})
    assert summarize(progress, state, 2.0)["perplexity"] is None
    progress.last["eval_loss"] = None
    with pytest.raises(DivergedError, match="validation loss that is NaN or infinite"):
        summarize(progress, state, 2.0)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--lr=nan", "lr must be a finite number, got nan"),
        ("--lr=inf", "lr must be a finite number, got inf"),
        ("--lr=-1", "lr must not be negative, got -1"),
        ("--weight-decay=-1", "weight_decay must not be negative"),
        ("--grad-clip=nan", "grad_clip must be a finite number"),
        ("--stop-after=0", "stop_after must be at least 1, got 0"),
        ("--stop-after=-3", "stop_after must be at least 1, got -3"),
        ("--rank=1000000000", "rank 1000000000 is above 258, the longest side"),
        ("--min-lr-ratio=2", r"min_lr_ratio must be in \[0, 1\]"),
        ("--seed=-1", "seed must be in"),
    ],
)
def test_impossible_numbers_are_refused(flags, flag, message):
    with pytest.raises(ValueError, match=message):
        parse([*flags, flag])


def test_a_dtype_of_a_file_is_checked_as_a_flag_is(flags, tmp_path):
    (tmp_path / "run.yaml").write_text("dtype: float64")
    with pytest.raises(ValueError, match=r"dtype is 'float64', expected one of \('float32'"):
        parse([*flags, f"--config={tmp_path / 'run.yaml'}"])


@pytest.mark.parametrize("content", ["model: [1, 2", "model:\n\t- x", "\x00"])
def test_a_file_that_is_no_yaml_is_named(flags, tmp_path, content):
    path = tmp_path / "broken.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"broken\.yaml: not YAML: .+") as caught:
        load_model_config(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"broken\.yaml: not YAML"):
        parse([*flags, f"--config={path}"])


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", "caf\xe9 au lait".encode("latin-1"), "not UTF-8 .byte 0xe9 at 3.*LATIN1"),
        ("a.txt", "text".encode("utf-16"), "is UTF-16; convert it"),
        ("a.md", b"\x89PNG\x00\x00", "is not UTF-8|zero bytes"),
        ("a.txt", b"text\x00\x01", "holds zero bytes"),
        ("a.jsonl", b'{"text": "one"}\n{"text": "tw', r"a\.jsonl:2: expected a JSON object"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"text": "one"}\n' * 99, mtime=0)[:-9],
            r"a\.jsonl\.gz: damaged or",
        ),
        ("a.jsonl.gz", b"no gzip", r"a\.jsonl\.gz: damaged or"),
    ],
)
def test_what_is_no_text_is_named(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        list(read_folder(tmp_path))


def test_the_mark_of_some_editors_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\ntwo".encode())
    assert list(read_folder(tmp_path)) == ["one\ntwo"]


def test_errors_of_the_system_name_the_file(tmp_path):
    with pytest.raises(OSError, match="No such file") as caught:
        (tmp_path / "gone").read_text()
    assert one_line(caught.value) == f"{tmp_path / 'gone'}: No such file or directory"


def test_a_file_in_the_folders_place_is_one_line(flags, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("sys.argv", ["pretrain", *flags, f"--output-dir={tmp_path / 'file'}"])
    with pytest.raises(SystemExit) as caught:
        pretrain.main()
    assert caught.value.code == (f"error: {tmp_path / 'file'}: is a file, but a run needs a folder")


@pytest.mark.parametrize("content", ["", '{"steps": 2', "[]", "\xff"])
def test_half_a_summary_is_no_summary(tmp_path, content):
    (tmp_path / "summary.json").write_bytes(content.encode("latin-1"))
    assert RunFolder(tmp_path).summary is None


SETTINGS = {"run": {"dataset": "text", "lr": 1.0}, "data": {"fingerprint": "x"}}


def test_another_spelling_is_the_same_run(tmp_path):
    folder = RunFolder(tmp_path)
    folder.claim(SETTINGS, {})
    folder.claim({**SETTINGS, "run": {"dataset": "./text/", "lr": 1.0}}, {})
    with pytest.raises(ValueError, match=r"data.fingerprint: 'x' there, 'y' now"):
        folder.claim({**SETTINGS, "data": {"fingerprint": "y"}}, {})


def test_a_key_that_is_newer_than_the_run_has_its_default(tmp_path):
    folder = RunFolder(tmp_path)
    folder.claim(SETTINGS, {})
    newer = {**SETTINGS, "run": SETTINGS["run"] | {"new": 3}}
    folder.claim(newer, {"run": {"new": 3}})
    with pytest.raises(ValueError, match=r"run.new: 4 there, 3 now"):
        folder.claim(newer, {"run": {"new": 4}})


@pytest.mark.parametrize("content", [None, "", '{"run": {"l'])
def test_lost_settings_come_from_the_checkpoint(tmp_path, content):
    run(tmp_path, stop=4)
    path = tmp_path / "config.json"
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    run(tmp_path, stop=8)
    assert json.loads(path.read_text()) == tiny_task.SETTINGS
    assert len(log_of(tmp_path)) == 8


def test_settings_lost_for_ever_are_refused(tmp_path):
    folder = RunFolder(tmp_path)
    (tmp_path / "checkpoints" / "4" / "state").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"config\.json is lost or damaged"):
        folder.claim(SETTINGS, {})


def test_c4_without_a_network_is_one_line_at_once(monkeypatch):
    def refuse(request, timeout):
        assert timeout <= 5
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(DownloadError, match=r"huggingface.co, which can't be reached") as caught:
        streaming.open_c4("allenai/c4", "train")
    assert "\n" not in str(caught.value)


def test_pip_compares_hashes_and_source_archives_are_never_built():
    wheel = Package("name", "1", "0" * 64).download_command()
    assert "--require-hashes" in wheel
    assert wheel[wheel.index("--only-binary") + 1] == ":all:"
    assert "pip" not in Package("name", "1", "0" * 64, "sdist").download_command()
    assert "--ignore-scripts" in Package("name", "1", "0" * 64, "npm").download_command()


@pytest.fixture
def index(tmp_path):
    """A package index on this machine that lists one honest file and one that is another."""
    data = b"archive"
    sha256 = hashlib.sha256(data).hexdigest()
    (tmp_path / "some-name").mkdir()
    page = (
        f'<a href="../one-1.zip#sha256={sha256}">one</a>'
        f'<a href="../two-1.zip#sha256={"2" * 64}">two</a>'
    )
    (tmp_path / "some-name" / "index.html").write_text(page)
    for name in ("one-1.zip", "two-1.zip"):
        (tmp_path / name).write_bytes(data)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("localhost", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}", sha256
        server.shutdown()


def test_a_source_archive_is_taken_by_its_hash(index, tmp_path):
    address, sha256 = index
    folder = tmp_path / "fetched"
    folder.mkdir()
    assert fetch_by_hash(address, "Some_Name", sha256, folder).read_bytes() == b"archive"
    with pytest.raises(ValueError, match="lists no file with SHA-256 333"):
        fetch_by_hash(address, "some-name", "3" * 64, folder)
    with pytest.raises(ValueError, match="has another SHA-256 than 222"):
        fetch_by_hash(address, "some-name", "2" * 64, folder)
    assert [path.name for path in folder.iterdir()] == ["one-1.zip"]


def test_a_checkpoint_of_an_earlier_commit_goes_on(tmp_path, monkeypatch, capsys):
    """Version 0, before checksums: the state's structure and numbers are read as they were.

    If a state's structure changes on purpose, raise ``VERSION`` and say how old runs go on.
    """
    monkeypatch.setenv("FIRA_JAX_CACHE", str(tmp_path / "cache"))
    earlier = Path(__file__).parent / "earlier_run"
    directory = Path(shutil.copytree(earlier, tmp_path / "run"))
    config = parse(
        [
            f"--model={earlier / 'tiny.yaml'}",
            f"--dataset={earlier / 'text'}",
            "--validation-tokens=64",
        ]
    )
    model = resolve_model(config)
    tokens = load_data(config, model.vocab_size)
    RunFolder(directory).claim(resolved(config, model, tokens.fingerprint), defaults())
    with contextlib.closing(Checkpoints(directory / "checkpoints")) as checkpoints:
        task = make_task(config, model, tokens, None)
        step, state, note = checkpoints.restore(task.abstract_state)
        assert "of an earlier version, without checksums" in capsys.readouterr().out
        assert step == int(state.step) == 4
        task.data.set_state(note["data"])
        task.data.close()
        expected = read_metrics(directory / "metrics.jsonl")[-1]["eval_loss"]
        assert float(task.evaluate(state)["eval_loss"]) == pytest.approx(expected, rel=1e-5)
        moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim == 3]
        assert all(np.any(np.asarray(x)) for x in moments)

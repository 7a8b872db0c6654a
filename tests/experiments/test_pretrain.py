"""The pre-training entry point as its users meet it: flags, files, kills and resumption."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.experimental.layout import Format, Layout

from experiments.llama import model
from experiments.llama.configs import load_model_config
from experiments.training import loop
from experiments.training import pretraining as train
from experiments.training.config import PretrainConfig, parse
from experiments.training.metrics import MetricsLog, read_metrics
from experiments.training.optimizers import OPTIMIZERS, build_optimizer, learning_rate_schedule
from experiments.training.progress import ProgressLine
from experiments.training.report import PATIENCE, DelayedReport, DivergedError
from experiments.training.step import TrainState, lower_update, make_init, make_train_step
from fira_jax.cost.memory import device_bytes
from tests.experiments.tiny_run import write_inputs

ROOT = Path(__file__).parents[2]


class Tiny:
    """Runs the command line in processes of their own, with one cache for all of them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.flags = write_inputs(folder)
        self.environment = os.environ | {
            "FIRA_JAX_CACHE": str(folder / "cache"),
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": str(ROOT),
        }

    def start(self, name: str, *flags: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "experiments.pretrain", *self.flags, *flags]
        command.append(f"--output-dir={self.folder / name}")
        return subprocess.Popen(
            command,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, name: str, *flags: str) -> str:
        process = self.start(name, *flags)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        return output

    def kill_when(self, condition: Callable[[], bool], name: str, *flags: str) -> None:
        process = self.start(name, *flags)
        while not condition():
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.001)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def finished(tiny) -> Path:
    """One whole run that nothing disturbed."""
    output = tiny.finish("whole", "--checkpoint-every=4")
    assert "finished: validation loss" in output
    return tiny.folder / "whole"


def test_run_learns_and_leaves_its_files(finished):
    records = read_metrics(finished / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, 31))
    assert all(np.isfinite(record["train_loss"]) for record in records)
    assert records[0]["train_loss"] == pytest.approx(np.log(258), rel=0.02)
    assert records[-1]["train_loss"] < 4.0
    evaluated = [record for record in records if "eval_loss" in record]
    assert [record["step"] for record in evaluated] == [10, 20, 30]
    assert evaluated[-1]["eval_loss"] < evaluated[0]["eval_loss"]
    assert evaluated[-1]["perplexity"] == pytest.approx(np.exp(evaluated[-1]["eval_loss"]))

    rates = [record["lr"] for record in records]
    assert rates[0] == 0.0
    assert max(rates) == rates[3] == pytest.approx(0.01)
    assert 0.001 < rates[-1] < 0.00105

    summary = json.loads((finished / "summary.json").read_text())
    assert summary["eval_loss"] == evaluated[-1]["eval_loss"]
    assert summary["tokens_per_second"] > 0
    assert json.loads((finished / "config.json").read_text())["run"]["rank"] == 8
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == ["28", "30"]
    assert list((finished / "tensorboard").glob("events*"))


def test_finished_run_is_left_alone(tiny, finished, monkeypatch, capsys):
    monkeypatch.setenv("FIRA_JAX_CACHE", tiny.environment["FIRA_JAX_CACHE"])
    before = (finished / "metrics.jsonl").read_bytes()
    summary = train.run(parse([*tiny.flags, f"--output-dir={finished}"]))
    assert summary == json.loads((finished / "summary.json").read_text())
    assert "already finished" in capsys.readouterr().out
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_killed_run_continues_bit_for_bit(tiny, finished):
    directory = tiny.folder / "killed"

    def lines() -> int:
        return len(read_metrics(directory / "metrics.jsonl"))

    def checkpoints(pattern: str) -> list[Path]:
        return list((directory / "checkpoints").glob(pattern))

    # A checkpoint every step: whatever is killed, one is being written or deleted around then.
    flags = "--checkpoint-every=1"
    tiny.kill_when(lambda: lines() >= 5 and bool(checkpoints("*tmp*")), "killed", flags)
    reached = lines()
    assert reached < 30
    # Then past the refresh at step 8, between checkpoints, leaving half a line behind.
    tiny.kill_when(lambda: lines() >= max(reached + 3, 12), "killed", "--checkpoint-every=5")
    assert lines() < 30
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9')
    output = tiny.finish("killed", "--checkpoint-every=5")
    assert "continuing" in output
    expected = (finished / "metrics.jsonl").read_bytes()
    assert (directory / "metrics.jsonl").read_bytes() == expected


@pytest.mark.slow
def test_a_run_layer_by_layer_has_the_same_losses_and_resumes_exactly(tiny):
    flags = ("--steps=8", "--accumulate=2", "--grad-clip=0.5", "--checkpoint-every=4")
    tiny.finish("ordinary", *flags)
    tiny.finish("layers", *flags, "--layerwise", "--stop-after=5")
    tiny.finish("layers", *flags, "--layerwise")
    logs = [read_metrics(tiny.folder / name / "metrics.jsonl") for name in ("ordinary", "layers")]
    for key in ("train_loss", "grad_norm", "lr"):
        ordinary, layers = ([record[key] for record in log] for log in logs)
        np.testing.assert_allclose(layers, ordinary, rtol=1e-3)


def test_a_state_that_lies_in_memory_otherwise_trains_and_resumes_alike(
    tiny, finished, monkeypatch
):
    """As on a TPU, where the compiler chooses; here every array is laid out backwards."""
    laid_out = []

    def lower(train_step, state, tokens):
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        formats = jax.tree.map(lambda x: Format(Layout(range(x.ndim)[::-1]), here), state)
        laid_out.append(formats)
        chosen = {"in_shardings": (formats, None), "out_shardings": (formats, None)}
        return jax.jit(train_step, donate_argnums=0, **chosen).lower(state, tokens)

    monkeypatch.setattr(loop, "lower_update", lower)
    monkeypatch.setenv("FIRA_JAX_CACHE", tiny.environment["FIRA_JAX_CACHE"])
    directory = tiny.folder / "backwards"
    flags = [*tiny.flags, "--checkpoint-every=4", f"--output-dir={directory}"]
    assert train.run(parse([*flags, "--stop-after=12"])) == {}
    summary = train.run(parse(flags))
    assert len(laid_out) == 2

    expected = json.loads((finished / "summary.json").read_text())
    assert summary["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-4)
    ours, theirs = (
        [record["train_loss"] for record in read_metrics(path / "metrics.jsonl")]
        for path in (directory, finished)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_what_a_tpu_lays_out_as_it_likes_is_the_same_update(monkeypatch):
    graphdef, params = nnx.split(Bigram(nnx.Rngs(0)))
    params = nnx.to_pure_dict(params)
    optimizer = optax.adam(0.1)
    step = make_train_step(graphdef, optimizer, optax.constant_schedule(1.0), accumulate=1)
    state = TrainState(jnp.int32(0), params, optimizer.init(params))
    abstract = jax.eval_shape(lambda: state)
    tokens = jax.random.randint(jax.random.key(0), (8, 33), 0, 16)
    results = []
    for platform in ("cpu", "tpu"):
        monkeypatch.setattr(jax, "default_backend", lambda platform=platform: platform)
        lowered = lower_update(step, abstract, tokens)
        assert ('layout_mode = "auto"' in lowered.as_text()) == (platform == "tpu")
        compiled = lowered.compile()
        copy = jax.tree.map(jnp.copy, state)
        results.append(compiled(jax.device_put(copy, compiled.input_formats[0][0]), tokens))
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_directory_of_another_run_is_refused(tiny, finished, monkeypatch):
    monkeypatch.setenv("FIRA_JAX_CACHE", tiny.environment["FIRA_JAX_CACHE"])
    config = parse([*tiny.flags, f"--output-dir={finished}", "--lr=0.02", "--rank=4"])
    with pytest.raises(ValueError, match="other settings") as error:
        train.run(config)
    assert "run.lr: 0.01 there, 0.02 now" in str(error.value)
    assert "run.rank: 8 there, 4 now" in str(error.value)
    assert "batch_size" not in str(error.value)


def test_more_specific_sources_win(tiny, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("lr: 2e-2\nrank: 4\nseed: 3\n")
    config = parse([*tiny.flags, f"--config={file}", "--rank=2"])
    assert config.rank == 2  # command line, over the file and the model
    assert config.lr == 0.02  # file, over the model
    assert config.seed == 3  # file, over the built-in default
    assert config.update_proj_gap == 7  # model, over the built-in default
    assert config.checkpoint_every == PretrainConfig.checkpoint_every

    file.write_text("model: llama_60m\nsteps: 1_000\n")
    config = parse([f"--config={file}"])
    paper = load_model_config("llama_60m")[1]
    assert (config.rank, config.lr, config.steps) == (paper["rank"], paper["lr"], 1000)


def test_warmup_follows_the_number_of_steps(tiny):
    assert parse([*tiny.flags, "--steps=300"]).warmup_steps == 30
    assert parse([*tiny.flags, "--steps=300", "--warmup-steps=7"]).warmup_steps == 7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rate: 0.1", "unknown keys.*learning_rate.*known are"),
        ("rank: many", "rank is 'many', expected int"),
        ("- rank", "expected `key: value` lines"),
        ("steps: 10\nwarmup_steps: 10", r"warmup_steps must be in \[0, steps\)"),
        ("accumulate: 3", "batch_size 8 does not split into 3"),
        ("rank: 0", "rank must be at least 1, got 0"),
        ("layerwise: true\nmesh: fsdp=8", "layerwise is for one device .* leave out mesh"),
    ],
)
def test_impossible_settings_are_named(tiny, tmp_path, content, message):
    file = tmp_path / "run.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        parse([*tiny.flags, f"--config={file}"])


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["--model=llama_60m", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "python -m experiments.pretrain --model llama_1m --optimizer fira" in text
    flags = """
        model optimizer rank update-proj-gap scale lr steps warmup-steps batch-size seq-len dtype
        seed eval-every checkpoint-every output-dir weight-decay grad-clip accumulate config
    """
    for flag in flags.split():
        assert f"--{flag} " in text
    assert f"(default: {load_model_config('llama_60m')[1]['rank']})" in text


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_updates_every_parameter(tiny, name):
    config = parse([*tiny.flags, f"--optimizer={name}", "--dtype=bfloat16", "--grad-clip=1"])
    optimizer = build_optimizer(config, learning_rate_schedule(config))
    _, init_state = make_init(train.resolve_model(config), optimizer, seed=0)
    state = jax.eval_shape(init_state)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("bfloat16")}
    updates, opt_state = jax.eval_shape(
        optimizer.update, state.params, state.opt_state, state.params
    )
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, state.params)
    assert jax.tree.map(jnp.shape, opt_state) == jax.tree.map(jnp.shape, state.opt_state)


def test_only_attention_and_mlp_are_projected(tiny):
    def state_bytes(optimizer: str) -> int:
        config = parse([*tiny.flags, f"--optimizer={optimizer}"])
        transformation = build_optimizer(config, learning_rate_schedule(config))
        _, init_state = make_init(train.resolve_model(config), transformation, seed=0)
        return device_bytes(jax.eval_shape(init_state).opt_state)

    # Two layers of four 32 x 32 and three 32 x 64 matrices at rank 8: basis 32·8 and moments
    # 2·32·8 or 2·64·8 instead of 2·32·32 or 2·32·64.
    saved = 4 * 2 * (4 * (2 * 32 * 32 - 3 * 32 * 8) + 3 * (2 * 32 * 64 - 32 * 8 - 2 * 64 * 8))
    assert state_bytes("adamw") - state_bytes("galore") == pytest.approx(saved, abs=64)


def test_a_basis_that_is_the_method_itself_cannot_be_replaced(tiny):
    config = parse([*tiny.flags, "--optimizer=subtrack", "--basis=svd"])
    with pytest.raises(ValueError, match="--basis svd: subtrack has a basis of its own"):
        build_optimizer(config, learning_rate_schedule(config))


def test_unknown_optimizer_is_named(tiny):
    config = parse([*tiny.flags, "--optimizer=adam"])
    with pytest.raises(ValueError, match=r"unknown optimizer 'adam'; choose from: adamw, .*fira"):
        build_optimizer(config, learning_rate_schedule(config))


class Bigram(nnx.Module):
    """Each token predicts the next by one row of logits: a model that compiles at once."""

    def __init__(self, rngs: nnx.Rngs):
        self.logits = nnx.Param(rngs.params.normal((16, 16)))

    def __call__(self, tokens_BxL: jax.Array) -> jax.Array:
        return self.logits[...][tokens_BxL]


def test_accumulated_micro_batches_equal_one_batch():
    graphdef, params = nnx.split(Bigram(nnx.Rngs(0)))
    params = nnx.to_pure_dict(params)
    optimizer = optax.sgd(1.0)  # linear in the gradient, so that differences stay visible
    tokens = jax.random.randint(jax.random.key(0), (8, 33), 0, 16)
    results = []
    for accumulate in (1, 4):
        step = make_train_step(graphdef, optimizer, optax.constant_schedule(1.0), accumulate)
        state = TrainState(jnp.int32(0), jax.tree.map(jnp.copy, params), optimizer.init(params))
        results.append(step(state, tokens))
    (whole, whole_values), (parts, parts_values) = results
    assert whole.step == parts.step == 1
    assert float(whole_values["grad_norm"]) > 0.01
    for name in ("train_loss", "grad_norm"):
        assert float(parts_values[name]) == pytest.approx(float(whole_values[name]), rel=1e-6)
    np.testing.assert_allclose(whole.params["logits"], parts.params["logits"], rtol=1e-6, atol=1e-7)


def test_loss_that_stays_nan_stops_the_run(tmp_path):
    log = MetricsLog(tmp_path, after_step=0)
    report = DelayedReport(log, ProgressLine(100))
    losses = [1.0, np.nan, 2.0] + [np.nan] * 100

    def submit_all() -> None:
        for step, loss in enumerate(losses, 1):
            report.submit(step, {"train_loss": jnp.float32(loss)})

    with pytest.raises(DivergedError, match="since step 4"):
        submit_all()
    log.close()
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert len(records) == 3 + PATIENCE
    assert records[1]["train_loss"] is None
    assert records[2]["train_loss"] == 2.0


def test_log_drops_what_comes_after_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "x": 0.1}\n{"step": 2, "x": 0.2}\n{"step": 3, "x')
    MetricsLog(tmp_path, after_step=1).close()
    assert path.read_text() == '{"step": 1, "x": 0.1}\n'


ADAPTIVE = (
    "--adaptive-batch=0.3",
    "--accumulate=2",
    "--max-batch-size=40",
    "--steps=8",
    "--optimizer=adamw",
)


@pytest.mark.slow
def test_adaptive_batches_grow_and_resume_exactly(tiny):
    """The batch size is part of the state: a run in two parts takes the same batches."""
    tiny.finish("grown", *ADAPTIVE, "--checkpoint-every=4")
    sizes = [record["batch_size"] for record in read_metrics(tiny.folder / "grown/metrics.jsonl")]
    assert sizes[0] == 8
    assert sizes == sorted(sizes)
    assert max(sizes) == 32  # the largest power of two times 8 within the maximum
    tiny.finish("parts", *ADAPTIVE, "--checkpoint-every=4", f"--stop-after={sizes.index(32)}")
    tiny.finish("parts", *ADAPTIVE, "--checkpoint-every=4")
    parts = [(tiny.folder / name / "metrics.jsonl").read_text() for name in ("grown", "parts")]
    assert parts[0] == parts[1]


def test_the_variance_that_the_norm_test_sees_is_that_of_sequences():

    def remember(updates, state, params=None, *, gradient_variance):
        return updates, gradient_variance

    optimizer = optax.GradientTransformationExtraArgs(lambda _: jnp.float32(0), remember)
    graphdef, params = nnx.split(Bigram(nnx.Rngs(0)))
    params = nnx.to_pure_dict(params)
    state = TrainState(jnp.int32(0), params, optimizer.init(params))
    tokens = jax.random.randint(jax.random.key(0), (16, 33), 0, 16)
    schedule = optax.constant_schedule(1.0)
    step = make_train_step(graphdef, optimizer, schedule, accumulate=8, adaptive=8)
    seen = step(jax.tree.map(jnp.copy, state), tokens)[0].opt_state

    def one(params, sequence):
        return model.loss(nnx.merge(graphdef, params), sequence[None])

    grads = jax.vmap(jax.grad(one), in_axes=(None, 0))(state.params, tokens)
    flat = np.concatenate([np.asarray(g).reshape(16, -1) for g in jax.tree.leaves(grads)], axis=1)
    np.testing.assert_allclose(seen, flat.var(axis=0, ddof=1).sum(), rtol=1e-3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--adaptive-batch=0.3",), "set accumulate to at least 2"),
        (("--adaptive-batch=-1",), "must not be negative, got -1"),
        ((*ADAPTIVE[:2], "--max-batch-size=4"), "max_batch_size 4 is below batch_size 8"),
    ],
)
def test_wrong_settings_of_adaptive_batches_are_named(tiny, flags, message):
    with pytest.raises(ValueError, match=message):
        parse([*tiny.flags, *flags])

"""``--parametrization``: what stands in place of kernels, is trained, restarted and resumed."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.llama.model import LlamaConfig
from experiments.llama.parametrization import (
    PARAMETRIZATIONS,
    make_restart,
    parametrize,
    restarting,
)
from experiments.training import pretraining as train
from experiments.training.config import PretrainConfig, parse
from experiments.training.optimizers import build_optimizer, learning_rate_schedule
from experiments.training.step import make_init, make_train_step, merge
from tests.experiments.tiny_run import write_inputs

MODEL = LlamaConfig(64, 32, 48, 2, 2, 16)
KERNELS = [(32, 32)] * 4 + [(32, 48)] * 2 + [(48, 32)]
RANK = 4
OUTSIDE = 2 * 64 * 32 + 32 + 2 * 2 * 32  # embedding, head and norms
FACTORS = {(m, n): RANK * (m + n) for m, n in KERNELS}
EXPECTED = {
    "lora": lambda m, n: FACTORS[m, n],
    "relora": lambda m, n: FACTORS[m, n],
    "dora": lambda m, n: FACTORS[m, n] + n,
    "factorized": lambda m, n: FACTORS[m, n],
    "cola": lambda m, n: FACTORS[m, n],
    "sltrain": lambda m, n: FACTORS[m, n] + round(0.03 * m * n),
    "lost": lambda m, n: FACTORS[m, n] + n,
}


def prepared(name):
    config = PretrainConfig(optimizer="adamw", parametrization=name, rank=RANK, update_proj_gap=8)
    schedule = restarting(config, learning_rate_schedule(config))
    optimizer = build_optimizer(config, schedule)
    prepare = functools.partial(parametrize, config=config)
    return config, schedule, optimizer, *make_init(MODEL, optimizer, 0, prepare)


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
def test_what_is_trained_is_counted_and_an_update_keeps_its_shape(name):
    _, schedule, optimizer, graphdef, init_state = prepared(name)
    state = jax.eval_shape(init_state)
    trained = sum(x.size for x in jax.tree.leaves(state.params))
    assert trained == OUTSIDE + 2 * sum(EXPECTED[name](*kernel) for kernel in KERNELS)
    step = make_train_step(graphdef, optimizer, schedule, accumulate=2)
    new, values = jax.eval_shape(step, state, jax.ShapeDtypeStruct((4, 17), jnp.int32))
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, state)
    assert values["train_loss"].shape == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", PARAMETRIZATIONS)
def test_updates_move_all_that_is_trained_and_nothing_else(name):
    _, schedule, optimizer, graphdef, init_state = prepared(name)
    state = jax.jit(init_state)()
    before = jax.tree.map(jnp.copy, state)
    step = make_train_step(graphdef, optimizer, schedule, accumulate=1)
    tokens = jax.random.randint(jax.random.key(0), (4, 17), 0, 64)
    for _ in range(3):  # the first has a rate of 0, the second moves only one factor of two
        state, _ = step(state, tokens)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state, before)
    assert all(jax.tree.leaves(moved.params)), moved.params
    assert not any(jax.tree.leaves(moved.frozen)), moved.frozen


def test_a_restart_changes_the_factors_and_not_the_model():
    config, schedule, _, graphdef, init_state = prepared("relora")
    state = jax.jit(init_state)()
    lift = functools.partial(jax.tree.map, lambda x: x + jnp.asarray(0.01, x.dtype))
    moments = jax.tree.map(lambda x: x + jnp.ones_like(x), state.opt_state)
    state = state._replace(params=lift(state.params), opt_state=moments)
    tokens = jnp.arange(8).reshape(1, 8)
    compute = jax.jit(lambda s: merge(graphdef, s.params, s.frozen)(tokens))
    before, old = compute(state), jax.tree.map(jnp.copy, state)
    new = make_restart(config, graphdef)(state)
    np.testing.assert_allclose(compute(new), before, rtol=1e-4, atol=1e-5)
    q, q_before = (s.params["layers"]["attn"]["q"] for s in (new, old))
    assert not q["lora_b"].any()
    assert not np.allclose(q["lora_a"][0], q["lora_a"][1])
    assert not np.allclose(q["lora_a"], q_before["lora_a"])
    mu = optax.tree.get(new.opt_state, "mu")
    assert np.mean(mu["layers"]["attn"]["q"]["lora_a"] == 0) > 0.9
    assert np.all(mu["embedding"] == 1)
    assert [float(schedule(t)) > 0 for t in (7, 8, 9)] == [True, False, True]


@pytest.mark.slow
def test_relora_stops_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("FIRA_JAX_CACHE", str(tmp_path / "cache"))
    flags = [*write_inputs(tmp_path), f"--output-dir={tmp_path / 'run'}", "--optimizer=adamw"]
    flags += ["--parametrization=relora", "--steps=12", "--update-proj-gap=5", "--eval-every=6"]
    assert train.run(parse([*flags, "--stop-after=6"])) == {}
    summary = train.run(parse(flags))
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    train.run(parse([*flags, f"--output-dir={tmp_path / 'undisturbed'}"]))
    assert (tmp_path / "undisturbed" / "metrics.jsonl").read_text() == text
    records = [json.loads(line) for line in text.splitlines()]
    assert [record["step"] for record in records] == list(range(1, 13))
    assert records[5]["lr"] == 0.0  # the first update after the restart
    assert summary["eval_loss"] < records[0]["train_loss"]
    assert summary["parameters"] < 30_000


def test_what_cannot_be_is_named(tmp_path):
    with pytest.raises(ValueError, match="unknown parametrization 'loha'; choose from: cola"):
        prepared("loha")[-1]()
    flags = write_inputs(tmp_path)
    with pytest.raises(ValueError, match="with it goes --optimizer adamw, got fira"):
        parse([*flags, "--parametrization=lora"])
    with pytest.raises(ValueError, match="layerwise is for models of matrices"):
        parse([*flags, "--parametrization=lora", "--optimizer=adamw", "--layerwise"])

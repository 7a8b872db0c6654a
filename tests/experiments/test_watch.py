"""What a watching run logs, and its table."""

import io

import jax.numpy as jnp
import optax
from rich.console import Console

import fira_jax
from experiments.training.watch import watch_table, watched

PARAMS = {"attn": {"q": jnp.ones((8, 16))}, "norm": jnp.ones(8)}


def test_nothing_is_logged_where_nothing_is_measured():
    assert watched(optax.adam(0.1).init(PARAMS)) == {}


def test_every_number_reaches_the_log_and_the_table():
    tx = optax.chain(optax.clip(1.0), fira_jax.measured(fira_jax.fira(0.1, rank=2)))
    _, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    record = {name: float(x) for name, x in watched(state).items()}
    assert record["watch/captured_energy"] == record["watch/captured_energy/attn/q"] > 0.99
    shown = io.StringIO()
    Console(file=shown, width=120).print(watch_table({"train_loss": 1.0, **record}))
    assert shown.getvalue().count("attn/q") == 1
    assert "captured energy" in shown.getvalue()

"""State shardings, and that eight devices do what one does, on automatic and explicit meshes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

import fira_jax
from benchmarks import eight_devices
from experiments.training.optimizers import OPTIMIZERS
from tests.xla_flags import xla_flags

ROOT = Path(__file__).parents[2]
FLAGS = (
    "--xla_force_host_platform_device_count=8 "
    "--xla_cpu_enable_concurrency_optimized_scheduler=false"
)
SCRIPT = Path(__file__).with_name("on_eight_devices.py")

SPECS = {
    "both": P("fsdp", "tensor"),
    "fsdp": P("fsdp", None),
    "second": P(None, "fsdp"),
    "stack": P(None, "fsdp", "tensor"),
    "bias": P("tensor"),
}
SHAPES = {
    "both": (32, 64),
    "fsdp": (64, 32),
    "second": (32, 48),
    "stack": (3, 32, 64),
    "bias": (16,),
}


def shardings_of(tx):
    mesh = AbstractMesh((4, 2), ("fsdp", "tensor"))
    params = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in SHAPES.items()}
    shardings = {k: NamedSharding(mesh, s) for k, s in SPECS.items()}
    state = fira_jax.state_shardings(tx, params, shardings)
    return jax.tree.map(lambda s: tuple(s.spec), state)


def test_nothing_stays_whole_that_could_be_shared_and_no_rank_is_split():
    choose = fira_jax.match_paths(exclude="bias")
    tx = fira_jax.fira(1e-2, rank=6, weight_dimension_numbers=choose)
    specs = shardings_of(tx)
    bases, mu = specs[0].bases, specs[1].mu
    assert bases["both"] == (("fsdp", "tensor"), None)  # a = 32 is the input axis
    assert mu["both"] == (None, ("tensor", "fsdp"))
    assert bases["fsdp"] == ("fsdp", None)  # a = 32 is the output axis
    assert mu["fsdp"] == (None, "fsdp")
    assert bases["second"] == ("fsdp", None)
    assert mu["second"] == (None, "fsdp")
    assert bases["stack"] == (None, ("fsdp", "tensor"), None)
    assert mu["stack"] == (None, None, ("tensor", "fsdp"))
    assert mu["bias"] == ("tensor",)
    assert specs[3].previous["stack"] == (None,)
    assert specs[0].count == ()


def test_a_transformation_may_be_asked_twice():
    tx = fira_jax.fira(1e-2, rank=6, weight_dimension_numbers=fira_jax.match_paths(exclude="bias"))
    assert shardings_of(tx) == shardings_of(tx)
    params = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in SHAPES.items()}
    assert str(fira_jax.describe(tx, params)) == str(fira_jax.describe(tx, params))


@pytest.mark.parametrize("kind", ["Auto", pytest.param("Explicit", marks=pytest.mark.slow)])
def test_eight_devices_do_what_one_does(kind):
    done = subprocess.run(
        [sys.executable, "-W", "error", str(SCRIPT), kind],
        env=os.environ | {"XLA_FLAGS": xla_flags(FLAGS), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


def test_every_optimizer_was_compared_on_eight_devices():
    rows = json.loads((ROOT / eight_devices.RESULT).read_text())["rows"]
    assert rows.keys() == OPTIMIZERS.keys()
    assert max(row["gap"] for row in rows.values()) <= eight_devices.LARGEST_GAP == 5e-3


@pytest.mark.slow
def test_some_optimizers_on_eight_devices():
    command = [sys.executable, "-m", "benchmarks.eight_devices", "dct_adamw", "vlorp", "alice"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]

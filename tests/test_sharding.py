"""State shardings, and that eight devices do what one does. Runs itself with eight CPU devices."""

import os
import subprocess
import sys

import pytest

FLAGS = (
    "--xla_force_host_platform_device_count=8 "
    "--xla_cpu_enable_concurrency_optimized_scheduler=false"
)

PRELUDE = """
import functools, re
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import fira_jax

mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
SPECS = {
    "both": P("fsdp", "tensor"), "fsdp": P("fsdp", None), "second": P(None, "fsdp"),
    "stack": P(None, "fsdp", "tensor"), "bias": P("tensor"),
}
SHAPES = {
    "both": (32, 64), "fsdp": (64, 32), "second": (32, 48), "stack": (3, 32, 64), "bias": (16,)
}
keys = dict(zip(SHAPES, jax.random.split(jax.random.key(0), len(SHAPES))))
params = {k: jax.random.normal(keys[k], s) for k, s in SHAPES.items()}
target = {k: jax.random.normal(jax.random.fold_in(keys[k], 1), s) for k, s in SHAPES.items()}
shardings = {k: NamedSharding(mesh, s) for k, s in SPECS.items()}

def make(basis):
    choose = fira_jax.match_paths(exclude="bias")
    return fira_jax.fira(
        1e-2, rank=6, update_proj_gap=3, basis=basis, weight_dimension_numbers=choose
    )

def train(tx, params, state, steps=7, **jit):
    @functools.partial(jax.jit, **jit)
    def step(params, state):
        grads = jax.tree.map(lambda p, t: p - t, params, target)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state
    for _ in range(steps):
        params, state = step(params, state)
    return params, state, step
"""

SPECS_ARE_RIGHT = """
tx = make("randomized")
specs = jax.tree.map(lambda s: tuple(s.spec), fira_jax.state_shardings(tx, params, shardings))
bases, mu = specs[0].bases, specs[1].mu
assert bases["both"] == (("fsdp", "tensor"), None), bases  # a = 32 is the input axis
assert mu["both"] == (None, ("tensor", "fsdp")), mu
assert bases["fsdp"] == ("fsdp", None), bases              # a = 32 is the output axis
assert mu["fsdp"] == (None, "fsdp"), mu
assert bases["second"] == ("fsdp", None) and mu["second"] == (None, "fsdp"), (bases, mu)
assert bases["stack"] == (None, ("fsdp", "tensor"), None), bases
assert mu["stack"] == (None, None, ("tensor", "fsdp")), mu
assert mu["bias"] == ("tensor",)
assert specs[3].previous["stack"] == (None,)
assert specs[0].count == ()
"""

EIGHT_EQUAL_ONE = """
for basis in ("randomized", "svd"):
    tx = make(basis)
    alone, _, _ = train(tx, params, tx.init(params))
    state_shardings = fira_jax.state_shardings(tx, params, shardings)
    spread = jax.device_put(params, shardings)
    state = jax.jit(tx.init, out_shardings=state_shardings)(spread)
    out = (shardings, state_shardings)
    together, state, step = train(tx, spread, state, out_shardings=out)
    for name in params:
        moved = np.abs(alone[name] - params[name]).max()
        gap = np.abs(np.asarray(together[name]) - np.asarray(alone[name])).max()
        assert gap <= 5e-3 * moved, (basis, name, gap, moved)
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
    total = sum(x.nbytes for x in jax.tree.leaves(state))
    assert held < 0.2 * total, (held, total)
"""


@pytest.mark.parametrize("body", [SPECS_ARE_RIGHT, EIGHT_EQUAL_ONE], ids=["specs", "training"])
def test_on_eight_devices(body):
    environment = os.environ | {"XLA_FLAGS": FLAGS, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + body],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]

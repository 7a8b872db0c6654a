"""Whether every optimizer does on eight devices what it does on one.

    python -m benchmarks.eight_devices

Takes three steps with a refresh in between, on one device and on a mesh of four by two that a CPU
plays, with weights split over both axes and the state as ``fira_jax.state_shardings`` says. A row's
gap is the largest difference between the updates of the two, relative to the largest update of the
same weights. Prints a table and writes docs/results/eight_devices.json as it goes; a rerun adds
what is missing or was too far away.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.sharded_refresh import ENVIRONMENT

RESULT = Path("docs/results/eight_devices.json")
LARGEST_GAP = 5e-3
LEARNING_RATE, RANK, GAP, STEPS = 1e-2, 6, 2, 3
SHAPES = {
    "attn": (32, 64),
    "mlp_up": (3, 32, 64),
    "mlp_down": (3, 64, 32),
    "head": (32, 48),
    "norm": (16,),
}
SPECS = {
    "attn": ("fsdp", "tensor"),
    "mlp_up": (None, "fsdp", "tensor"),
    "mlp_down": (None, None, "fsdp"),
    "head": ("fsdp", "tensor"),
    "norm": ("tensor",),
}


def compare(name: str) -> dict[str, Any]:
    """Trains with one optimizer on one device and on eight."""
    import jax  # noqa: PLC0415  # after ENVIRONMENT is set
    import numpy as np  # noqa: PLC0415
    import optax  # noqa: PLC0415
    from jax.sharding import AxisType, NamedSharding, PartitionSpec  # noqa: PLC0415

    import fira_jax  # noqa: PLC0415
    from experiments.training.config import PretrainConfig  # noqa: PLC0415
    from experiments.training.optimizers import OPTIMIZERS  # noqa: PLC0415

    config = PretrainConfig(optimizer=name, rank=RANK, update_proj_gap=GAP)
    tx = OPTIMIZERS[name](config, optax.constant_schedule(LEARNING_RATE))
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
    shardings = {key: NamedSharding(mesh, PartitionSpec(*spec)) for key, spec in SPECS.items()}
    rng = np.random.default_rng(0)
    params, *steps = (
        {key: rng.standard_normal(shape, np.float32) for key, shape in SHAPES.items()}
        for _ in range(1 + STEPS)
    )
    # Another one at each step: gradients all but alike would make M-FAC's products singular.
    targets = jax.tree.map(lambda *x: np.stack(x), *steps)

    @jax.jit
    def train(params: Any, state: Any, targets: Any) -> Any:
        def step(carry: Any, target: Any) -> Any:
            params, state = carry
            grads = jax.tree.map(lambda p, t: p - t, params, target)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), updates

        return jax.lax.scan(step, (params, state), targets)[1]

    alone = train(params, tx.init(params), targets)
    stacked = {key: NamedSharding(mesh, PartitionSpec(None, *spec)) for key, spec in SPECS.items()}
    spread, spread_targets = jax.device_put((params, targets), (shardings, stacked))
    state_shardings = fira_jax.state_shardings(tx, params, shardings)
    state = jax.jit(tx.init, out_shardings=state_shardings)(spread)
    share = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
    total = sum(x.nbytes for x in jax.tree.leaves(state))
    together = train(spread, state, spread_targets)
    gaps = {
        key: float(np.abs(np.asarray(together[key]) - alone[key]).max())
        / float(np.abs(alone[key]).max())
        for key in params
    }
    return {"gap": max(gaps.values()), "state_share": share / total if total else 0.0}


def main() -> None:
    """Compares what is missing, shows the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="these optimizers only, again")
    args = parser.parse_args()
    os.environ |= ENVIRONMENT
    from experiments.files import write_atomically  # noqa: PLC0415
    from experiments.training.optimizers import OPTIMIZERS  # noqa: PLC0415

    rows = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else {}
    settings = {"steps": STEPS, "rank": RANK, "shapes": SHAPES, "specs": SPECS}
    for name in args.names or OPTIMIZERS:
        if args.names or rows.get(name, {"gap": 1.0})["gap"] > LARGEST_GAP:
            print("comparing", name, "...", file=sys.stderr, flush=True)
            rows = {key: rows[key] for key in OPTIMIZERS if key in rows} | {name: compare(name)}
            write_atomically(RESULT, json.dumps(settings | {"rows": rows}, indent=1) + "\n")
    table = Table("optimizer", "gap", "of the state on a device")
    for name, row in rows.items():
        table.add_row(name, f"{row['gap']:.1e}", f"{row['state_share']:.0%}")
    Console().print(table)
    sys.exit(any(row["gap"] > LARGEST_GAP for row in rows.values()))


if __name__ == "__main__":
    main()

"""What the devices of a mesh tell each other at a refresh, and how much each of them computes.

    python -m benchmarks.sharded_refresh                    # eight devices that a CPU plays
    pip install libtpu
    python -m benchmarks.sharded_refresh --topologies cpu v5e:16x16 v5p:8x8x8

Compiles, ahead of time and for stacked layers of a LLaMA, one update with its refreshes, and the
refresh of its largest matrix alone: split as the weights are, and naively, each device having the
whole gradient. Collectives are read from the compiled program, FLOPs and memory are the compiler's;
no time is measured or claimed. A rerun adds what is missing to docs/results/sharded_refresh.json.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.compiled_program import array_bytes
from experiments.files import write_atomically

RESULT = Path("docs/results/sharded_refresh.json")
RANK = 128
DEVICES = {"cpu": 8, "v5e:16x16": 256, "v5p:8x8x8": 512}
# Width, inner width, width of keys and values, layers.
MODELS = {
    "llama_60m": (512, 1376, 512, 8),
    "llama_7b": (4096, 11008, 4096, 32),
    "llama_70b": (8192, 28672, 1024, 80),
}
ROWS = (
    ("cpu", "llama_60m", "fsdp=8"),
    ("cpu", "llama_60m", "fsdp=4,tensor=2"),
    ("v5e:16x16", "llama_7b", "fsdp=256"),
    ("v5e:16x16", "llama_7b", "fsdp=16,tensor=16"),
    ("v5p:8x8x8", "llama_70b", "fsdp=64,tensor=8"),
)
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8 "
    "--xla_cpu_enable_concurrency_optimized_scheduler=false",
}
COLLECTIVE = re.compile(
    r" = (.*?) (all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)"
    r"(?:-start)?\(.*"
)


def collectives(program: str) -> list[tuple[str, int]]:
    """Kind and result's bytes of every collective in a compiled program, as written in it."""
    found = []
    for line in program.splitlines():
        if match := COLLECTIVE.search(line):
            arrays = re.findall(r"(\w+)\[([\d,]*)\]", match[1])
            sizes = [array_bytes(*array) for array in arrays]
            # An asynchronous gather's result names its operand too.
            found.append((match[2], max(sizes) if "-start(" in line else sum(sizes)))
    return found


def compile_row(topology: str, model: str, axes: str) -> dict[str, Any]:
    """Compiles one row and reads what the compiler says."""
    import jax  # noqa: PLC0415  # after ENVIRONMENT is set
    import jax.numpy as jnp  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415
    from jax.experimental import topologies  # noqa: PLC0415
    from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: PLC0415

    import fira_jax  # noqa: PLC0415
    from experiments.mesh import AXES, param_shardings  # noqa: PLC0415

    if topology == "cpu":
        devices = jax.devices()
    else:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    named = dict(part.split("=") for part in axes.split(","))
    sizes = tuple(int(named.get(name, 1)) for name in AXES)
    mesh = Mesh(np.array(devices).reshape(sizes), AXES)

    d, f, kv, layers = MODELS[model]
    shapes = {
        "attn": {"q": (d, d), "k": (d, kv), "v": (d, kv), "o": (d, d)},
        "mlp": {"gate": (d, f), "up": (d, f), "down": (f, d)},
    }
    params = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct((layers, *shape), jnp.bfloat16),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    shardings = param_shardings(mesh, params)
    tx = fira_jax.fira(1e-2, RANK, weight_dimension_numbers=fira_jax.match_paths())
    state_shardings = fira_jax.state_shardings(tx, params, shardings)

    def placed(tree: Any, shardings: Any) -> Any:
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
        )

    state, grads = (
        placed(jax.eval_shape(tx.init, params), state_shardings),
        placed(params, shardings),
    )
    began = time.perf_counter()
    update = jax.jit(tx.update, out_shardings=(shardings, state_shardings), donate_argnums=(0, 1))
    compiled = update.lower(grads, state, grads).compile()
    seconds = time.perf_counter() - began
    gathered = [
        size for kind, size in collectives(compiled.as_text() or "") if kind == "all-gather"
    ]
    # Its gathers are of basis and coordinates of all layers at once, in bfloat16.
    memory = compiled.memory_analysis()
    assert memory is not None

    basis = fira_jax.basis.resolve("randomized")

    def find(grad: jax.Array, seed: jax.Array) -> jax.Array:
        stored = basis.init(d, RANK, jnp.bfloat16)
        return basis.find(grad, stored, RANK, jax.random.wrap_key_data(seed))

    def alone(spec: PartitionSpec, result: PartitionSpec) -> Any:
        grad = jax.ShapeDtypeStruct((d, f), jnp.float32, sharding=NamedSharding(mesh, spec))
        seed = jax.ShapeDtypeStruct((2,), jnp.uint32, sharding=NamedSharding(mesh, PartitionSpec()))
        return jax.jit(find, out_shardings=NamedSharding(mesh, result)).lower(grad, seed).compile()

    split = alone(PartitionSpec("fsdp", "tensor"), PartitionSpec(("fsdp", "tensor")))
    whole = alone(PartitionSpec(), PartitionSpec())
    told = collectives(split.as_text() or "")
    matrix = 4 * d * f
    return {
        "update_compile_s": seconds,
        "update_temp_mib": memory.temp_size_in_bytes / 2**20,
        "update_largest_all_gather_of_stack": max(gathered, default=0) / (2 * layers * d * f),
        "collectives": ", ".join(
            f"{count} {kind}" for kind, count in Counter(kind for kind, _ in told).most_common()
        ),
        "refresh_largest_all_gather_of_matrix": max(
            (size for kind, size in told if kind == "all-gather"), default=0
        )
        / matrix,
        "refresh_bytes_of_matrix": sum(size for _, size in told) / matrix,
        "gflop_per_device": (split.cost_analysis() or {}).get("flops", math.nan) / 1e9,
        "gflop_naive": (whole.cost_analysis() or {}).get("flops", math.nan) / 1e9,
    }


def main() -> None:
    """Compiles what is missing, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topologies", nargs="+", default=["cpu"], choices=list(DEVICES))
    parser.add_argument("--limit", type=float, default=1500.0, help="seconds for one row")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps(compile_row(*ROWS[args.one])))
        return

    rows = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    for index, (topology, model, axes) in enumerate(ROWS):
        name = {"topology": topology, "model": model, "mesh": axes}
        if topology not in args.topologies or any(row.items() >= name.items() for row in rows):
            continue
        print(f"compiling {model} for {topology}, mesh {axes} ...", flush=True)
        try:
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.sharded_refresh", "--one", str(index)],
                env=os.environ | ENVIRONMENT,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                timeout=args.limit,
            )
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
            print(error, flush=True)  # the other rows do not depend on it
            continue
        rows.append(
            name
            | {"devices": DEVICES[topology], "rank": RANK}
            | json.loads(done.stdout.splitlines()[-1])
        )
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(RESULT, json.dumps({"rows": rows}, indent=1) + "\n")

    table = Table(
        "devices", "model", "mesh", "largest gather", "sent, of a matrix", "GFLOP", "naive GFLOP"
    )
    for row in rows:
        table.add_row(
            f"{row['devices']} ({row['topology']})",
            row["model"],
            row["mesh"],
            f"{row['refresh_largest_all_gather_of_matrix']:.1%}",
            f"{row['refresh_bytes_of_matrix']:.1%}",
            f"{row['gflop_per_device']:.3g}",
            f"{row['gflop_naive']:.3g}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()

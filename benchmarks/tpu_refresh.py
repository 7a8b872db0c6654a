"""What the real TPU compiler makes of a refresh, without a TPU.

    pip install libtpu
    python -m benchmarks.tpu_refresh

Compiles one refresh of one square matrix ahead of time for a v5e chip, for every kind of basis and
several sizes, each in a process of its own with a time limit. Compile time, memory beyond inputs
and outputs, and FLOPs are the compiler's; no time on a TPU is measured or claimed. Prints a table
and writes docs/results/tpu_refresh.json as it goes; a rerun adds what is missing.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULT = Path("docs/results/tpu_refresh.json")
RANK = 128
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def compile_refresh(basis_name: str, size: int) -> dict[str, Any]:
    """Compiles ``find`` for a ``[size, size]`` gradient and reads the compiler's analysis."""
    import jax  # noqa: PLC0415  # after ENVIRONMENT is set
    import jax.numpy as jnp  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415
    from jax.experimental import topologies  # noqa: PLC0415

    import fira_jax  # noqa: PLC0415

    basis = fira_jax.basis.resolve(basis_name)
    chip = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[:1]
    mesh = jax.sharding.Mesh(np.array(chip), ("chip",))
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def abstract(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    grad = abstract(jax.ShapeDtypeStruct((size, size), jnp.float32))
    stored = abstract(jax.eval_shape(lambda: basis.init(size, RANK, jnp.float32)))
    seed = abstract(jax.ShapeDtypeStruct((2,), jnp.uint32))

    def refresh(grad: jax.Array, stored: jax.Array, seed: jax.Array) -> jax.Array:
        return basis.find(grad, stored, RANK, jax.random.wrap_key_data(seed))

    lowered = jax.jit(refresh).lower(grad, stored, seed)
    begin = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - begin
    cost, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    assert memory is not None
    return {
        "compile_s": seconds,
        "temp_mib": memory.temp_size_in_bytes / 2**20,
        "gflop": cost.get("flops", float("nan")) / 1e9,
    }


def main() -> None:
    """Compiles what is missing, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bases", nargs="+", default=["randomized", "dct", "svd"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[256, 512, 4096])
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for one compilation")
    parser.add_argument("--one", nargs=2, metavar=("BASIS", "SIZE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(compile_refresh(args.one[0], int(args.one[1]))))
        return

    rows = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    for size in args.sizes:
        for basis in args.bases:
            if any(row["basis"] == basis and row["size"] == size for row in rows):
                continue
            command = [sys.executable, "-m", "benchmarks.tpu_refresh", "--one", basis, str(size)]
            row: dict[str, Any] = {"basis": basis, "size": size, "rank": RANK}
            print(f"compiling {basis}, {size} x {size} ...", flush=True)
            try:
                done = subprocess.run(
                    command,
                    env=os.environ | ENVIRONMENT,
                    capture_output=True,
                    text=True,
                    check=True,
                    timeout=args.limit,
                )
                row |= json.loads(done.stdout.splitlines()[-1])
            except subprocess.TimeoutExpired:
                row["compile_s"] = f"over {args.limit:.0f}"
            rows.append(row)
            RESULT.parent.mkdir(parents=True, exist_ok=True)
            RESULT.write_text(json.dumps({"chip": "v5e", "rows": rows}, indent=1) + "\n")

    table = Table("basis", "matrix", "rank", "compile, s", "memory, MiB", "GFLOP")
    for row in rows:
        seconds = row["compile_s"]
        table.add_row(
            row["basis"],
            f"{row['size']} x {row['size']}",
            str(row["rank"]),
            seconds if isinstance(seconds, str) else f"{seconds:.1f}",
            f"{row['temp_mib']:.1f}" if "temp_mib" in row else "-",
            f"{row['gflop']:.1f}" if "gflop" in row else "-",
        )
    Console().print(table)


if __name__ == "__main__":
    main()

"""What products, and an update with its refresh, cost the TPU compiler; without a TPU.

    pip install libtpu
    python -m benchmarks.tpu_refresh
    python -m benchmarks.tpu_refresh --weights "llama_1b, 2 layers" --optimizers adamw oja

Compiles ahead of time for a v5e chip. Seconds are the processor's, all threads together, so that
other work on the machine hardly counts. The size of the code, memory beyond inputs and outputs,
FLOPs and the cycles of all kernels are the compiler's estimates, the last two with the body of a
loop once; no time on a TPU is measured or claimed. Each row is written to
docs/results/tpu_refresh.json as it comes; a rerun adds what is missing.
"""

import argparse
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.printed import print_rows
from experiments.files import write_atomically

RESULT = Path("docs/results/tpu_refresh.json")
RANK = 512
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
WEIGHTS: dict[str, dict[str, tuple[int, ...]]] = {
    "2 x 2048 x 2048": {"mlp": (2, 2048, 2048)},
    # All 24 would not fit the chip in float32; the compiler's work hardly depends on their number.
    "llama_1b, 2 layers": {
        **{f"attn_{name}": (2, 2048, 2048) for name in "qkvo"},
        **{f"mlp_{name}": (2, 2048, 5461) for name in ("gate", "up")},
        "mlp_down": (2, 5461, 2048),
    },
}
OPTIMIZERS = {  # and the basis of Fira: its class and arguments
    "adamw": None,
    "oja": ("Oja", {}),
    "power iteration": ("PowerIteration", {}),
    "randomized": ("Randomized", {}),
    "randomized, oversample=0": ("Randomized", {"oversample": 0}),
}
PRODUCTS = ("[2048, 2048] by [2048, 512]", "[512, 512] by [512, 512]", "y (y^T y), y [2048, 512]")
PRECISIONS = ("default", "high", "highest")  # one, three and six passes in bfloat16
CYCLES = r'"estimated_cycles":"(\d+)"'
UNKNOWN = 2**63 - 1
"""What is written for a kernel that the compiler has no estimate of."""
Program = tuple[Any, tuple[Any, ...]]
"""A function and abstract arguments."""


def product(name: str, precision: str) -> Program:
    """One of ``PRODUCTS``."""
    import jax  # noqa: PLC0415  # after ENVIRONMENT is set
    import jax.numpy as jnp  # noqa: PLC0415

    def array(m: int, n: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((m, n), jnp.float32)

    def times(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.matmul(x, y, precision=precision)

    if name == PRODUCTS[2]:
        return lambda y: times(y, times(y.T, y)), (array(2048, 512),)
    size = 2048 if name == PRODUCTS[0] else 512
    return times, (array(size, size), array(size, 512))


def update(weights: str, optimizer: str) -> Program:
    """One update with its refresh."""
    import jax  # noqa: PLC0415
    import jax.numpy as jnp  # noqa: PLC0415
    import optax  # noqa: PLC0415

    import fira_jax  # noqa: PLC0415

    tx: Any = optax.adamw(1e-3)
    if chosen := OPTIMIZERS[optimizer]:
        basis = getattr(fira_jax.basis, chosen[0])(**chosen[1])
        every = fira_jax.match_paths()
        tx = fira_jax.fira(1e-3, RANK, basis=basis, weight_dimension_numbers=every)
    shapes = WEIGHTS[weights].items()
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes}
    return tx.update, (params, jax.eval_shape(tx.init, params), params)


def compile_program(program: Program, limit_kib: int | None) -> dict[str, Any]:
    """Compiles for one chip and reads the compiler's analysis."""
    import jax  # noqa: PLC0415

    from benchmarks.fits import device_of  # noqa: PLC0415

    function, arguments = program
    where = jax.sharding.SingleDeviceSharding(device_of("v5e:1x1")[0])
    there = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), arguments
    )
    lowered = jax.jit(function).lower(*there)
    options: Any = {"xla_tpu_scoped_vmem_limit_kib": limit_kib} if limit_kib else None
    began = time.process_time()
    compiled = lowered.compile(compiler_options=options)
    seconds = time.process_time() - began
    sizes = compiled.memory_analysis()
    assert sizes is not None
    cycles = map(int, re.findall(CYCLES, compiled.as_text() or ""))
    return {
        "compile_cpu_s": round(seconds, 2),
        "code_mib": round(sizes.generated_code_size_in_bytes / 2**20, 2),
        "temp_mib": round(sizes.temp_size_in_bytes / 2**20, 1),
        "gflop": (compiled.cost_analysis() or {}).get("flops", float("nan")) / 1e9,
        "mcycles": sum(x for x in cycles if x < UNKNOWN) / 1e6,
    }


def main() -> None:
    """Compiles what is missing, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", nargs="*", choices=WEIGHTS, default=list(WEIGHTS)[:1])
    parser.add_argument("--optimizers", nargs="*", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--limit-kib", type=int, help="fast memory that one kernel may take")
    args = parser.parse_args()
    os.environ.update(ENVIRONMENT)

    results: dict[str, Any] = {"chip": "v5e", "rank": RANK, "updates": [], "products": []}
    if RESULT.exists():
        results |= json.loads(RESULT.read_text())
    wanted: dict[str, tuple[Callable[[str, str], Program], list[dict[str, str]]]] = {
        "updates": (
            update,
            [{"weights": x, "optimizer": name} for x in args.weights for name in args.optimizers],
        ),
        "products": (
            product,
            [{"product": x, "precision": how} for x in PRODUCTS for how in PRECISIONS],
        ),
    }
    for table, (program, keys) in wanted.items():
        rows = results[table]
        for key in keys:
            row = key | {"kernel_memory_kib": args.limit_kib}
            if any(row.items() <= known.items() for known in rows):
                continue
            print("compiling", *row.values(), flush=True)
            rows.append(row | compile_program(program(*key.values()), args.limit_kib))
            RESULT.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(RESULT, json.dumps(results, indent=1) + "\n")
        if rows:
            print_rows(rows)


if __name__ == "__main__":
    main()

"""What products, and an update with its refresh, cost the TPU compiler; without a TPU.

    pip install libtpu
    python -m benchmarks.tpu_refresh

Compiles ahead of time for a v5e chip. Seconds are the processor's, all threads together, so that
other work on the machine hardly counts; what the compiler does once in a process is done before.
The size of the code, memory beyond inputs and outputs and the cycles of all kernels are the
compiler's estimates; it counts the body of a loop once, so those of a product in blocks are taken
times the blocks. No time on a TPU is measured or claimed. Each row is written to
docs/results/tpu_refresh.json as it comes; a rerun adds what is missing.
"""

import argparse
import itertools
import json
import os
import re
import time
from collections.abc import Callable, Iterable
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
    "randomized, oversample=0": ("Randomized", {"oversample": 0}),
    "randomized": ("Randomized", {}),
    "power iteration": ("PowerIteration", {}),
}
PRODUCTS = ("[2048, 2048] by [2048, 512]", "[512, 512] by [512, 512]", "y (y^T y), y [2048, 512]")
PRECISIONS = ("default", "highest")  # one and six passes in bfloat16
BLOCKS = ("whole", "in blocks")
CYCLES = r'"estimated_cycles":"(\d+)"'
UNKNOWN = 2**63 - 1
"""What is written for a kernel that the compiler has no estimate of."""
Program = tuple[Any, tuple[Any, ...]]
"""A function and abstract arguments."""


def product(name: str, precision: str, how: str) -> Program:
    """One of ``PRODUCTS``, in a loop, as a refresh has it."""
    import jax  # noqa: PLC0415  # after ENVIRONMENT is set
    import jax.numpy as jnp  # noqa: PLC0415

    from fira_jax.basis.products import in_blocks  # noqa: PLC0415

    times = in_blocks if how == "in blocks" else jnp.matmul

    def array(m: int, n: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((m, n), jnp.float32)

    def again(step: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
        def repeated(y: jax.Array) -> jax.Array:
            with jax.default_matmul_precision(precision):
                return jax.lax.fori_loop(0, RANK, lambda _, y: step(y), y)

        return repeated

    if name == PRODUCTS[2]:
        return again(lambda y: times(y, times(y.T, y))), (array(2048, RANK),)
    size = 2048 if name == PRODUCTS[0] else RANK

    def by_matrix(x: jax.Array, y: jax.Array) -> jax.Array:
        return again(lambda y: times(x, y))(y)

    return by_matrix, (array(size, size), array(size, RANK))


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


def compile_program(program: Program) -> dict[str, Any]:
    """Compiles for one chip and reads the compiler's analysis."""
    import jax  # noqa: PLC0415

    from benchmarks.fits import device_of  # noqa: PLC0415

    function, arguments = program
    where = jax.sharding.SingleDeviceSharding(device_of("v5e:1x1")[0])
    there = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), arguments
    )
    lowered = jax.jit(function).lower(*there)
    began = time.process_time()
    compiled = lowered.compile()
    seconds = time.process_time() - began
    sizes = compiled.memory_analysis()
    assert sizes is not None
    cycles = map(int, re.findall(CYCLES, compiled.as_text() or ""))
    return {
        "compile_cpu_s": round(seconds, 2),
        "code_mib": round(sizes.generated_code_size_in_bytes / 2**20, 2),
        "temp_mib": round(sizes.temp_size_in_bytes / 2**20, 1),
        "mcycles": sum(x for x in cycles if x < UNKNOWN) / 1e6,
    }


def main() -> None:
    """Compiles what is missing, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", nargs="*", choices=WEIGHTS, default=list(WEIGHTS))
    parser.add_argument("--optimizers", nargs="*", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    args = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    from fira_jax.basis.products import COLUMNS  # noqa: PLC0415

    results: dict[str, Any] = {"chip": "v5e", "rank": RANK, "updates": [], "products": []}
    if RESULT.exists():
        results |= json.loads(RESULT.read_text())
    tables: dict[str, tuple[Callable[..., Program], dict[str, Iterable[str]]]] = {
        "updates": (update, {"weights": args.weights, "optimizer": args.optimizers}),
        "products": (
            product,
            {"product": PRODUCTS, "precision": PRECISIONS, "blocks": BLOCKS},
        ),
    }
    compile_program(product(PRODUCTS[1], "default", "whole"))  # what is done once in a process
    for table, (program, axes) in tables.items():
        rows = results[table]
        for values in itertools.product(*axes.values()):
            row = dict(zip(axes, values, strict=True))
            if any(row.items() <= known.items() for known in rows):
                continue
            print("compiling", *values, flush=True)
            figures = compile_program(program(*values))
            cycles = figures.pop("mcycles")
            if table == "products":  # those of a refresh are not known: loops in loops
                figures["mcycles"] = cycles * (RANK // COLUMNS if "in blocks" in values else 1)
            rows.append(row | figures)
            RESULT.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(RESULT, json.dumps(results, indent=1) + "\n")
        if rows:
            print_rows(rows)


if __name__ == "__main__":
    main()

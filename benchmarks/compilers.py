"""Whether every method, basis and further piece compiles for CPU, TPU and GPU.

    pip install libtpu                                   # for TPUs
    pip install jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12    # for GPUs
    python -m benchmarks.compilers

Compiles one update with its refresh for a small tree (stacked layers, a square matrix, a head, a
norm) ahead of time, with the compiler of each chip and without the chip. Then a step without a
refresh of some optimizers on one LLaMA-60M layer, and counts kernels in the compiled program.
Nothing is run; sizes are what the compiler counts. Each compiler has a process of its own, which
writes docs/results/compilers.json after every row; a rerun adds what is missing or did not compile,
for the compilers that are installed. One method alone: ``--word NAME``.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.compiled_program import count
from benchmarks.fits import device_of
from benchmarks.printed import print_rows
from benchmarks.tpu_refresh import ENVIRONMENT

RESULT = Path("docs/results/compilers.json")
COMPILERS = {"cpu": "cpu", "v5e": "v5e:1x1", "h100": "h100", "rtx4090": "rtx4090"}
SHAPES = {"mlp": (2, 256, 384), "attn": (256, 256), "head": (256, 300), "norm": (256,)}
RANK = 16
PLAIN_STEPS = ("adamw", "optax.contrib.galore", "galore", "fira")
COUNTED = ("v5e", "rtx4090")

Case = Callable[[], tuple[Callable[..., Any], tuple[Any, ...]]]
"""Builds a function and abstract arguments for it."""


def cases() -> dict[tuple[str, str], Case]:
    """What is compiled, by its kind and name."""
    import jax  # noqa: PLC0415  # after ENVIRONMENT is set
    import jax.numpy as jnp  # noqa: PLC0415
    import optax  # noqa: PLC0415

    import fira_jax  # noqa: PLC0415
    from experiments.training.config import PretrainConfig  # noqa: PLC0415
    from experiments.training.optimizers import OPTIMIZERS  # noqa: PLC0415

    def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    tree = {name: array(*shape) for name, shape in SHAPES.items()}
    matrices = fira_jax.match_paths(exclude=("head", "norm"))

    def update(tx: Any, params: Any = tree, **extra: Any) -> Any:
        def one(grads: Any, state: Any, params: Any, extra: Any) -> Any:
            updates, state = tx.update(grads, state, params, **extra)
            return optax.apply_updates(params, updates), state

        return one, (params, jax.eval_shape(tx.init, params), params, extra)

    def method(name: str) -> Case:
        config = PretrainConfig(optimizer=name, rank=RANK)
        return lambda: update(OPTIMIZERS[name](config, optax.constant_schedule(1e-3)))

    def fira(**options: Any) -> Any:
        return fira_jax.fira(1e-3, RANK, weight_dimension_numbers=matrices, **options)

    def quantized_weights() -> Any:
        weights = jax.eval_shape(fira_jax.precision.quantize_weights, tree)
        return fira_jax.precision.apply_quantized_updates, (weights, tree, array(dtype=jnp.int32))

    def rounding() -> Any:
        tx = optax.chain(optax.sgd(1e-3), fira_jax.precision.round_stochastically())
        return update(tx, jax.tree.map(lambda x: array(*x.shape, dtype=jnp.bfloat16), tree))

    def lora_pro(moments: Any) -> Case:
        factors = {"lora_a": array(256, RANK), "lora_b": array(RANK, 384)}
        return lambda: update(fira_jax.lora_pro(1e-3, scaling=2.0, moments=moments), factors)

    def adadagrad() -> Any:
        return update(fira_jax.adadagrad(0.1, 8, 64), gradient_variance=array())

    def cross_entropy() -> Any:
        def loss(x: Any, head: Any, targets: Any) -> Any:
            return jnp.mean(fira_jax.chunked_cross_entropy(x, head, targets, 128))

        arguments = array(2, 64, 256), array(256, 512), array(2, 64, dtype=jnp.int32)
        return jax.grad(loss, (0, 1)), arguments

    def layerwise() -> Any:
        init, step = fira_jax.layerwise(
            fira(),
            embed=lambda outer, batch: batch @ outer["attn"],
            block=lambda layer, x: x + jnp.tanh(x @ layer["mlp"]) @ layer["mlp"].T,
            head_loss=lambda outer, x, batch: jnp.mean((x * outer["norm"] - batch) ** 2),
        )
        params = {**tree, "layers": {"mlp": tree["mlp"]}}
        del params["mlp"]
        return step, (params, jax.eval_shape(init, params), array(64, 256))

    bases = {
        kind.__name__: kind
        for kind in vars(fira_jax.basis).values()
        if isinstance(kind, type) and hasattr(kind, "find") and kind is not fira_jax.basis.Basis
    }
    pieces: dict[str, Case] = {
        "paper's form by matrix": lambda: update(fira(form="paper", granularity="matrix")),
        "staggered refreshes": lambda: update(fira(refresh="staggered")),
        "weights in 8 bits": quantized_weights,
        "stochastic rounding": rounding,
        "LoRA-Pro, full moments": lora_pro("full"),
        "LoRA-Pro, factors' moments": lora_pro("factors"),
        "AdAdaGrad": adadagrad,
        "chunked cross-entropy": cross_entropy,
        "layerwise step": layerwise,
    }
    return (
        {("method", name): method(name) for name in OPTIMIZERS}
        | {("basis", n): lambda kind=kind: update(fira(basis=kind())) for n, kind in bases.items()}
        | {("piece", name): case for name, case in pieces.items()}
    )


def compile_case(case: Case, device: Any) -> dict[str, Any]:
    """Compiles one case for a device and reads the compiler's analysis."""
    import jax  # noqa: PLC0415

    function, arguments = case()
    where = jax.sharding.SingleDeviceSharding(device)
    there = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), arguments
    )
    lowered = jax.jit(function).lower(*there)
    began = time.perf_counter()
    sizes = lowered.compile().memory_analysis()
    assert sizes is not None
    temp = sizes.temp_size_in_bytes
    kept = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return {"peak_bytes": kept + temp, "temp_bytes": temp, "s": time.perf_counter() - began}


def plain_step(name: str, device: Any) -> dict[str, Any]:
    """Kernels and bytes of a step without a refresh, beside the least bytes."""
    import jax  # noqa: PLC0415

    from benchmarks import first_step  # noqa: PLC0415
    from benchmarks.update_step import set_count  # noqa: PLC0415

    tx, params = first_step.CANDIDATES[name](), first_step.parameters(layers=1)
    where = jax.sharding.SingleDeviceSharding(device)
    grads, state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        (params, jax.eval_shape(tx.init, params)),
    )

    def step(grads: Any, state: Any, params: Any) -> Any:
        # The count is a number, so that the compiler leaves the refresh out.
        return tx.update(grads, set_count(state, 1), params)

    program = jax.jit(step, donate_argnums=(0, 1)).lower(grads, state, grads).compile()
    counted = count(program.as_text() or "")
    least = least_bytes(name)
    return {
        "kernels_per_matrix": counted.kernels / len(jax.tree.leaves(params)),
        "moved_bytes": counted.bytes,
        "least_bytes": least,
        "over_the_least": counted.bytes / least,
    }


def least_bytes(name: str) -> int:
    """What a plain step has to read and write.

    A gradient and an update, ``2 a b`` numbers; moments there and back and a basis, of which Optax
    has the long side's, ``4 r b + r a`` or ``4 r a + r b``; or Adam's, and weights that decay,
    ``5 a b``.
    """
    import jax  # noqa: PLC0415

    from benchmarks import first_step  # noqa: PLC0415

    numbers = 0
    for x in jax.tree.leaves(first_step.parameters(layers=1)):
        short, long = sorted(x.shape)
        basis, moments = (long, short) if name == "optax.contrib.galore" else (short, long)
        low_rank = first_step.RANK * (basis + 4 * moments)
        numbers += 2 * short * long + (5 * short * long if name == "adamw" else low_rank)
    return 4 * numbers


def compile_all(compiler: str, word: str, output: Path) -> None:
    """Compiles what is missing for one compiler and has ``word`` in its kind or name."""
    import jax  # noqa: PLC0415

    device = jax.devices("cpu")[0] if compiler == "cpu" else device_of(COMPILERS[compiler])[0]
    rows, steps = read(output), read_steps(output)
    for (kind, name), case in cases().items():
        row = rows.get((kind, name), {"kind": kind, "name": name})
        if row.get(compiler) or word not in f"{kind} {name}":
            continue
        print(f"{compiler}: {kind} {name} ...", file=sys.stderr, flush=True)
        try:
            found = {"": True} | compile_case(case, device)
        except jax.errors.JaxRuntimeError as error:
            print(error, file=sys.stderr, flush=True)  # the others do not depend on it
            found = {"": False}
        row |= {f"{compiler}_{key}".rstrip("_"): value for key, value in found.items()}
        rows[kind, name] = row
        write(output, rows, steps)
    for name in PLAIN_STEPS if compiler in COUNTED else ():
        if (compiler, name) not in steps and word in f"plain step {name}":
            print(f"{compiler}: plain step {name} ...", file=sys.stderr, flush=True)
            row = {"topology": COMPILERS[compiler], "optimizer": name}
            steps[compiler, name] = row | plain_step(name, device)
            write(output, rows, steps)


def write(output: Path, rows: dict[Any, Any], steps: dict[Any, Any]) -> None:
    """Everything so far."""
    from experiments.files import write_atomically  # noqa: PLC0415

    output.parent.mkdir(parents=True, exist_ok=True)
    results = {"shapes": SHAPES, "rank": RANK, "rows": list(rows.values())}
    results |= {"plain_steps": list(steps.values())}
    write_atomically(output, json.dumps(results, indent=1) + "\n")


def read(output: Path = RESULT) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows so far, by kind and name."""
    rows = json.loads(output.read_text())["rows"] if output.exists() else []
    return {(row["kind"], row["name"]): row for row in rows}


def read_steps(output: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The plain steps so far, by compiler and optimizer."""
    rows = json.loads(output.read_text()).get("plain_steps", []) if output.exists() else []
    compilers = {topology: name for name, topology in COMPILERS.items()}
    return {(compilers[row["topology"]], row["optimizer"]): row for row in rows}


def main() -> None:
    """Compiles what is missing, shows the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compilers", nargs="+", choices=COMPILERS, default=list(COMPILERS))
    parser.add_argument("--word", default="", help="only what has it in its kind or name")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--one", choices=COMPILERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        compile_all(args.one, args.word, args.output)
        return

    for compiler in args.compilers:
        command = [sys.executable, "-m", "benchmarks.compilers", "--one", compiler]
        command += ["--word", args.word, "--output", str(args.output)]
        subprocess.run(command, env=ENVIRONMENT | os.environ, check=False)
    table = Table("kind", "name", *(f"{name}, s" for name in COMPILERS))
    for row in read(args.output).values():
        seconds = [f"{row[f'{c}_s']:.1f}" if row.get(c) else "-" for c in COMPILERS]
        table.add_row(row["kind"], row["name"], *seconds)
    Console().print(table)
    if steps := read_steps(args.output):
        print_rows(list(steps.values()))


if __name__ == "__main__":
    main()

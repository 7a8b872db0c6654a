"""Whether one training step fits a chip, by the chip's own compiler and without the chip.

    pip install libtpu                                   # for TPUs
    pip install jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12    # for GPUs
    python -m benchmarks.fits --model llama_7b --topology v5e:1x1 --rank 64 --seq-len 2048 --batch 1
    python -m benchmarks.fits --table

Compiles the whole step ahead of time: forward, backward, update and refresh are one program, in
bfloat16, optimizer state included, with every matrix projected, embedding and head too. The last
line is JSON: what the compiler says the program needs. Nothing is run, no time is measured or
claimed. ``--table`` compiles every row of ``ROWS`` in a process of its own, shows a table beside
what ``experiments.memory`` predicts, and writes docs/results/fits.json as it goes, with the largest
model and the most tokens of each chip; a rerun adds what is missing.
"""

import argparse
import collections
import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.printed import print_rows
from benchmarks.tpu_refresh import ENVIRONMENT

RESULT = Path("docs/results/fits.json")
GPU_TARGETS = Path(__file__).parent / "gpu_targets"
GIB = 2**30
METHODS = ("fira", "galore", "apollo_mini", "adamw")
# (model, topology, further options): the smallest first, so that something stands there soon.
ROWS = [
    ("llama_7b", "rtx4090", "--batch 1"),
    ("llama_7b", "rtx4090", "--batch 2"),
    ("llama_7b", "rtx4090", "--batch 4"),
    ("llama_7b", "rtx4090", "--batch 1 --ordinary"),
    ("llama_7b", "rtx4080", "--batch 1"),
    ("llama_7b", "rtx4080", "--batch 1 --method galore"),
    ("llama_7b", "rtx4080", "--batch 1 --method apollo_mini"),
    ("llama_1b", "rtx4080", "--batch 1 --method adamw"),
    ("llama_3b", "rtx4090", "--batch 1 --method adamw"),
    ("llama_7b", "h100", "--batch 1 --method adamw"),
    ("llama_13b", "h100", "--batch 1 --method adamw"),
    *(
        (model, card, f"{size} --method {method}")
        for method in METHODS[:3]
        for model, card, size in (
            ("llama_7b", "rtx4090", "--batch 16 --micro-batches 16"),
            ("llama_13b", "rtx4090", "--batch 1 --weights int8"),
            ("llama_65b", "h100", "--batch 1 --weights int8"),
        )
    ),
    ("llama_30b", "h100", "--batch 1"),
    # Near the most tokens that fit.
    ("llama_7b", "rtx4090", "--batch 15 --micro-batches 15 --method galore"),
    ("llama_7b", "rtx4080", "--batch 2"),
    ("llama_7b", "rtx4080", "--batch 2 --method galore"),
    ("llama_7b", "rtx4080", "--batch 2 --method apollo_mini"),
    ("llama_7b", "h100", "--batch 104 --micro-batches 104"),
    ("llama_7b", "h100", "--batch 103 --micro-batches 103 --method galore"),
    ("llama_7b", "h100", "--batch 104 --micro-batches 104 --method apollo_mini"),
    ("llama_7b", "h100", "--batch 64 --micro-batches 64 --method adamw"),
    # TPUs, whose compiler takes minutes.
    ("llama_7b", "v5e:1x1", "--batch 1 --ordinary"),
    ("llama_1b", "v5e:1x1", "--batch 1 --method adamw"),
    ("llama_7b", "v5e:1x1", "--batch 1 --method adamw"),
    ("llama_7b", "v5e:1x1", "--batch 1 --method apollo_mini"),
    ("llama_7b", "v5e:1x1", "--batch 3 --micro-batches 3 --method apollo_mini"),
    ("llama_7b", "v5e:1x1", "--batch 1"),
    ("llama_7b", "v5e:1x1", "--batch 2"),
    ("llama_7b", "v5e:1x1", "--batch 4 --micro-batches 4"),
    ("llama_7b", "v5e:1x1", "--batch 1 --method galore"),
    ("llama_7b", "v5e:1x1", "--batch 2 --method galore"),
    ("llama_13b", "v5e:1x1", "--batch 1 --seq-len 1024 --weights int8"),
    ("llama_13b", "v5e:1x1", "--batch 1 --seq-len 1024 --weights int8 --method galore"),
    ("llama_13b", "v5e:1x1", "--batch 1 --weights int8 --method apollo_mini"),
    ("llama_3b", "v6e:1x1", "--batch 1 --method adamw"),
    ("llama_7b", "v6e:1x1", "--batch 29 --micro-batches 29"),
    ("llama_7b", "v6e:1x1", "--batch 29 --micro-batches 29 --method galore"),
    ("llama_7b", "v6e:1x1", "--batch 30 --micro-batches 30 --method apollo_mini"),
    ("llama_7b", "v6e:1x1", "--batch 1 --rank 1024 --oversample 0"),
    ("llama_13b", "v6e:1x1", "--batch 1"),
    ("llama_13b", "v6e:1x1", "--batch 4 --micro-batches 4"),
    ("llama_13b", "v6e:1x1", "--batch 4 --micro-batches 4 --method galore"),
    ("llama_13b", "v6e:1x1", "--batch 5 --micro-batches 5 --method apollo_mini"),
]


def device_of(topology: str) -> tuple[Any, float]:
    """One device of a chip that is not there, and its memory in GiB."""
    from jax.experimental import topologies  # noqa: PLC0415  # after ENVIRONMENT is set

    from experiments.memory import CHIPS_GIB  # noqa: PLC0415

    target = GPU_TARGETS / f"{topology}.txtpb"
    if target.exists():
        text = target.read_text()
        described = topologies.get_topology_desc(
            platform="cuda", target_config=text, topology="1x1x1"
        )
        memory = re.search(r"device_memory_size: (\d+)", text)
        assert memory is not None
        return described.devices[0], int(memory[1]) / GIB
    chip, _, shape = topology.partition(":")
    if f"TPU {chip}" not in CHIPS_GIB:
        cards = sorted(path.stem for path in GPU_TARGETS.glob("*.txtpb"))
        raise ValueError(
            f"unknown topology {topology!r}: expected one of {', '.join(cards)}, or a TPU such as "
            f"v5e:1x1 (known chips: {', '.join(CHIPS_GIB)})"
        )
    bounds = [*map(int, shape.split("x")), 1, 1][:3]
    described = topologies.get_topology_desc(
        platform="tpu", topology_name=topology, chips_per_host_bounds=bounds
    )
    return described.devices[0], CHIPS_GIB[f"TPU {chip}"]


def build_optimizer(method: str, rank: int, oversample: int | None) -> Any:
    """The method with every matrix projected, embedding and head included."""
    import optax  # noqa: PLC0415

    import fira_jax  # noqa: PLC0415

    if method == "adamw":
        return optax.adamw(1e-3)
    matrices = fira_jax.match_paths(("attn", "mlp", "embedding", "head"))
    options: dict[str, Any] = {"weight_dimension_numbers": matrices}
    if method == "apollo_mini":
        return fira_jax.apollo_mini(1e-3, **options)
    if oversample is not None:
        options["basis"] = fira_jax.basis.Randomized(oversample=oversample)
    return getattr(fira_jax, method)(1e-3, rank=rank, **options)


def model_of(args: argparse.Namespace) -> Any:
    """Architecture and numerics of a row."""
    import jax.numpy as jnp  # noqa: PLC0415

    from experiments.llama.configs import load_model_config  # noqa: PLC0415

    return dataclasses.replace(
        load_model_config(args.model)[0],
        dtype=jnp.bfloat16,
        param_dtype=jnp.bfloat16,
        max_sequence_length=args.seq_len,
        remat=True,
    )


def storage(args: argparse.Namespace) -> dict[str, Any]:
    """In which form a layerwise step keeps the weights."""
    from experiments.training.layerwise_step import in_8_bits  # noqa: PLC0415

    return {"store": in_8_bits} if args.weights == "int8" else {}


def predicted_gib(args: argparse.Namespace) -> float:
    """The peak that ``experiments.memory`` predicts, without the compiler."""
    from experiments.memory import predict  # noqa: PLC0415

    prediction = predict(
        model_of(args),
        build_optimizer(args.method, args.rank, args.oversample),
        args.batch,
        args.seq_len,
        args.micro_batches,
        layerwise=not args.ordinary,
        **storage(args),
    )
    return round(prediction.peak_bytes / GIB, 2)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Compiles the step and reads the compiler's analysis."""
    import jax  # noqa: PLC0415
    import jax.numpy as jnp  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415

    from experiments.training.layerwise_step import make_layerwise  # noqa: PLC0415
    from experiments.training.step import lower_update, make_init, make_train_step  # noqa: PLC0415
    from fira_jax.cost.memory import device_bytes  # noqa: PLC0415

    device, memory_gib = device_of(args.topology)
    config = model_of(args)
    tx = build_optimizer(args.method, args.rank, args.oversample)
    where = jax.sharding.NamedSharding(
        jax.sharding.Mesh(np.array([device]), ("chip",)), jax.sharding.PartitionSpec()
    )

    def there(tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)

    tokens = there(jax.ShapeDtypeStruct((args.batch, args.seq_len + 1), jnp.int32))
    if args.ordinary:
        graphdef, init_state = make_init(config, tx, seed=0)
        step = make_train_step(graphdef, tx, lambda _: 1e-3, args.micro_batches)
    else:
        init_state, step = make_layerwise(
            config, tx, lambda _: 1e-3, 0, args.micro_batches, **storage(args)
        )
    state = jax.eval_shape(init_state)
    shapes = there(state), tokens
    lowered = step.lower(*shapes) if args.default_layout else lower_update(step, *shapes)

    result = {
        "weights_gib": round(device_bytes(state.params) / GIB, 3),
        "state_gib": round(device_bytes(state.opt_state) / GIB, 3),
        "memory_gib": round(memory_gib, 2),
        "tokens_per_step": args.batch * args.seq_len,
    }
    print(f"compiling for {device.device_kind} ...", file=sys.stderr, flush=True)
    began = time.perf_counter()
    try:
        sizes = lowered.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        # The TPU compiler refuses a program that does not fit, and says what it would need.
        needed = re.search(r"(?:Used |temporaries \()([\d.]+)([GM])", str(error))
        if needed is None:
            raise
        peak = float(needed[1]) / (1 if needed[2] == "G" else 1024)
        temp = peak - result["weights_gib"] - result["state_gib"]
    else:
        kept = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
        temp = (sizes.temp_size_in_bytes + sizes.generated_code_size_in_bytes) / GIB
        peak = kept / GIB + temp
    return {
        "fits": bool(peak <= memory_gib),
        "peak_gib": round(peak, 2),
        **result,
        "temp_gib": round(temp, 3),
        "compile_s": round(time.perf_counter() - began, 1),
    }


def parser() -> argparse.ArgumentParser:
    described = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = described.add_argument
    add("--model", default="llama_7b", help="a name in experiments/configs, or a yaml")
    add("--topology", default="v5e:1x1", help="v5e:1x1, v6e:1x1 ... or a card in gpu_targets")
    add("--method", choices=METHODS, default="fira")
    add("--rank", type=int, default=64)
    add("--oversample", type=int, help="of the basis; 0 leaves out its eigenproblem")
    add("--seq-len", type=int, default=2048)
    add("--batch", type=int, default=1)
    add("--micro-batches", type=int, default=1, help="pieces of the batch within a layer")
    add("--weights", choices=("bfloat16", "int8"), default="bfloat16")
    add("--default-layout", action="store_true", help="a TPU's state lies as it does by default")
    add("--ordinary", action="store_true", help="the ordinary step instead of the layerwise one")
    add("--table", action="store_true", help="all rows, into docs/results/fits.json")
    add("--limit", type=float, default=3600, help="seconds for one row of the table")
    return described


def compile_table(limit: float) -> None:
    """Compiles the rows that are missing, each in a process of its own, and shows them all."""
    from experiments.files import write_atomically  # noqa: PLC0415

    rows = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    names = (
        "model", "topology", "method", "rank", "oversample", "weights", "step", "tokens_per_step",
        "micro_batches",
    )  # fmt: skip
    for model, topology, further in ROWS:
        command = ["--model", model, "--topology", topology, *further.split()]
        args = parser().parse_args(command)
        key = {
            "model": args.model,
            "topology": args.topology,
            "method": args.method,
            "rank": {"adamw": None, "apollo_mini": 1}.get(args.method, args.rank),
            "oversample": args.oversample,
            "weights": args.weights,
            "step": "ordinary" if args.ordinary else "layerwise",
            "tokens_per_step": args.batch * args.seq_len,
            "micro_batches": args.micro_batches,
        }
        row = next((row for row in rows if all(row[name] == key[name] for name in names)), None)
        if row is not None and "predicted_gib" in row:
            continue
        if row is None:
            print("compiling", *command, flush=True)
            try:
                done = subprocess.run(
                    [sys.executable, "-m", "benchmarks.fits", *command],
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                    timeout=limit,
                )
            except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
                print(error, flush=True)  # the other rows do not depend on it
                continue
            row = key | json.loads(done.stdout.splitlines()[-1])
            rows.append(row)
        row["predicted_gib"] = predicted_gib(args)
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        results = {"rows": rows, "corners": corners(rows)}
        write_atomically(RESULT, json.dumps(results, indent=1) + "\n")

    shown = (*names[:-1], "fits", "peak_gib", "predicted_gib", "memory_gib", "compile_s")
    print_rows(rows, shown)


def corners(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each chip's and method's largest model and most tokens a step, of what was compiled."""
    from experiments.llama.configs import load_model_config  # noqa: PLC0415

    def size(row: dict[str, Any]) -> tuple[int, int]:
        return load_model_config(row["model"])[0].parameter_count, row["tokens_per_step"]

    def told(row: dict[str, Any]) -> str:
        weights = ", int8 weights" if row["weights"] == "int8" else ""
        return f"{row['model']}{weights}, {row['tokens_per_step']:,} tokens: {row['peak_gib']} GiB"

    groups: dict[Any, list[dict[str, Any]]] = collections.defaultdict(list)
    for row in rows:
        if row["fits"] and row["oversample"] is None:  # another basis is another comparison
            chip = row["memory_gib"], row["topology"]
            groups[chip, METHODS.index(row["method"])].append(row)
    found = []
    for ((memory, chip), method), group in sorted(groups.items()):
        sevens = [row for row in group if row["model"] == "llama_7b"]
        found.append(
            {
                "topology": chip,
                "memory_gib": memory,
                "method": METHODS[method],
                "largest_model": told(max(group, key=size)),
                "most_tokens_of_7b": told(max(sevens, key=size)) if sevens else None,
            }
        )
    return found


def main() -> None:
    args = parser().parse_args()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if args.table:
        compile_table(args.limit)
    else:
        print(json.dumps(measure(args)))


if __name__ == "__main__":
    main()

"""How eight devices share the exact SVDs of a refresh: each its own, or all of them all.

    python -m benchmarks.dealt_out

Compiles the refresh of a stacked LLaMA-60M's attention and MLP weights for eight devices that a CPU
plays, with and without the mesh being known (``jax.set_mesh``), and reads the program: how often a
device factorizes and what it is sent, loops multiplied out, all matrices being due. Nothing is run.
Prints a table and writes docs/results/dealt_out.json.
"""

import argparse
import contextlib
import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.printed import print_rows
from benchmarks.sharded_refresh import ENVIRONMENT, MODELS, RANK, collectives
from experiments.files import write_atomically

RESULT = Path("docs/results/dealt_out.json")
MESHES = ("fsdp=8", "fsdp=4,tensor=2")
HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
NAME = re.compile(r"%([\w.-]+)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


def unrolled(program: str) -> list[tuple[str, int]]:
    """Each line of a compiled program, and how often it is run if every branch is taken."""
    bodies: dict[str, list[str]] = {}
    entry = name = ""
    for line in program.splitlines():
        if match := HEADER.match(line):
            name = match[2]
            entry = name if match[1] else entry
        bodies.setdefault(name, []).append(line)

    def walk(name: str, times: int) -> list[tuple[str, int]]:
        lines = []
        for line in bodies[name][1:]:
            lines.append((line, times))
            trips = TRIPS.search(line)
            for called in NAME.findall(line):
                if called in bodies:
                    lines += walk(called, times * int(trips[1] if trips else 1))
        return lines

    return walk(entry, 1)


def compile_refresh(axes: str, known: bool) -> dict[str, Any]:
    """Compiles one refresh and reads it."""
    import jax  # noqa: PLC0415  # after ENVIRONMENT is set
    import jax.numpy as jnp  # noqa: PLC0415

    import fira_jax  # noqa: PLC0415
    from experiments.mesh import make_mesh, param_shardings  # noqa: PLC0415

    mesh = make_mesh(axes)
    d, f, _, layers = MODELS["llama_60m"]
    sizes = {**dict.fromkeys("qkvo", (d, d)), "gate": (d, f), "up": (d, f), "down": (f, d)}
    grads: Any = {
        name: jax.ShapeDtypeStruct((layers, *size), jnp.float32) for name, size in sizes.items()
    }
    low_rank = fira_jax.LowRank(RANK, basis="svd", weight_dimension_numbers=fira_jax.match_paths())
    tx = fira_jax.low_rank_project(low_rank)
    shardings = param_shardings(mesh, grads)
    state_shardings = fira_jax.state_shardings(tx, grads, shardings)
    grads, state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        (grads, jax.eval_shape(tx.init, grads)),
        (shardings, state_shardings),
    )
    refresh = jax.jit(lambda g, s: tx.update(g, s)[1], out_shardings=state_shardings)
    with jax.set_mesh(mesh) if known else contextlib.nullcontext():
        lines = unrolled(refresh.lower(grads, state).compile().as_text() or "")

    sent = [(*told, times) for line, times in lines for told in collectives(line)]
    kinds = Counter[str]()
    for kind, _, times in sent:
        kinds[kind] += times
    return {
        "mesh": axes,
        "svds": "dealt out" if known else "each device all",
        "matrices": len(sizes) * layers,
        "svds_of_each_device": sum(times for line, times in lines if "gesdd" in line),
        "collectives": ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()),
        "received_bytes": sum(size * times for _, size, times in sent),
        "largest_collective_bytes": max(size for _, size, _ in sent),
    }


def main() -> None:
    """Compiles, prints and writes."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    os.environ.update(ENVIRONMENT)
    rows = [compile_refresh(axes, known) for axes in MESHES for known in (False, True)]
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(RESULT, json.dumps({"rows": rows}, indent=1) + "\n")
    print_rows(rows)


if __name__ == "__main__":
    main()

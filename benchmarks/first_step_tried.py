"""What was tried to shorten the compiler's time for many separate matrices, and what came of it.

    python -m benchmarks.first_step_tried

Fira on the layers of benchmarks.first_step, compiled as it is and with one thing changed, by the
processor's time; the kernels are those that the compiler makes, alike ones once, and the
instructions those of the compiled program. Prints a table and writes
docs/results/first_step_tried.json. Three minutes on two quiet cores.
"""

import contextlib
import functools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata

import fira_jax.refresh.replace
import fira_jax.transforms.project
import fira_jax.trees
from benchmarks.first_step import CANDIDATES, parameters
from benchmarks.printed import print_rows
from experiments.files import write_atomically

RESULT = Path("docs/results/first_step_tried.json")
LAYERS, ROUNDS = 32, 1


def kept_apart(f: Callable[..., Any], leaves: Any, **options: Any) -> Callable[..., Any]:
    """``traced_once`` whose calls stay calls in the compiled program."""
    del leaves
    jitted = jax.jit(f, **options)

    def call(*args: Any) -> Any:
        with set_xla_metadata(inlineable="false"):
            return jitted(*args)

    return call


def known(numbers: list[int], true: jax.Array) -> list[Any]:
    """Places of slices that the compiler knows."""
    del true
    return list(map(jnp.int32, numbers))


def behind_a_barrier(numbers: list[int], true: jax.Array) -> list[Any]:
    """Places of slices that an optimization barrier holds back."""
    return jax.lax.optimization_barrier(known(numbers, true))


@contextlib.contextmanager
def replaced(places: Any = None, once: Any = None) -> Iterator[None]:
    """Puts other functions in the place of the library's."""
    with contextlib.ExitStack() as stack:
        patch = lambda *args: stack.enter_context(mock.patch.object(*args))  # noqa: E731
        if places is not None:
            patch(fira_jax.refresh.replace, "_hidden", places)
        if once is not None:
            patch(fira_jax.trees, "traced_once", once)
            patch(fira_jax.transforms.project, "traced_once", once)
        yield


CHANGES: dict[str, Any] = {
    "optax.contrib.galore": contextlib.nullcontext,
    "fira": contextlib.nullcontext,
    "fira, places of slices known": functools.partial(replaced, places=known),
    "fira, places behind a barrier": functools.partial(replaced, places=behind_a_barrier),
    "fira, calls kept apart": functools.partial(replaced, once=kept_apart),
}


def compile_one(name: str, folder: str) -> dict[str, Any]:
    """Compiles one variant in this process, whose compiler writes to a folder."""
    tx, params = CANDIDATES[name.split(",", maxsplit=1)[0]](), parameters(LAYERS)
    with CHANGES[name]():
        lowered = jax.jit(tx.update).lower(params, jax.eval_shape(tx.init, params), params)
    begin = time.process_time()
    compiled = lowered.compile()
    seconds = time.process_time() - begin
    kernels = len(list(Path(folder).glob("*jit_update*ir-with-opt.ll")))
    instructions = len(re.findall(r"^ +(?:ROOT )?%", compiled.as_text() or "", re.MULTILINE))
    return {"compile_seconds": seconds, "kernels": kernels, "instructions": instructions}


def measure(name: str, *, count: bool) -> dict[str, Any]:
    """The same in a process of its own; to count kernels they are written out, which takes time."""
    with tempfile.TemporaryDirectory() as folder:
        flags = {"XLA_FLAGS": f"--xla_dump_to={folder}"} if count else {}
        command = [sys.executable, "-m", "benchmarks.first_step_tried", name, folder]
        done = subprocess.run(
            command, env=os.environ | flags, capture_output=True, text=True, check=True
        )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measures, prints and writes."""
    if len(sys.argv) == 3:
        print(json.dumps(compile_one(*sys.argv[1:])))
        return
    seconds: dict[str, list[float]] = {name: [] for name in CHANGES}
    for _ in range(ROUNDS):
        for name, times in seconds.items():
            times.append(measure(name, count=False)["compile_seconds"])
    rows = []
    base = statistics.median(seconds["optax.contrib.galore"])
    for name, times in seconds.items():
        counted = measure(name, count=True)
        median = statistics.median(times)
        row = {"name": name, "compile_seconds": median, "over_optax_galore": median / base}
        rows.append(row | {key: counted[key] for key in ("kernels", "instructions")})
    result = {"layers": LAYERS, "rounds": ROUNDS, "jax": jax.__version__, "rows": rows}
    write_atomically(RESULT, json.dumps(result, indent=1) + "\n")
    print_rows(rows)


if __name__ == "__main__":
    main()

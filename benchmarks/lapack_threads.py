"""What LAPACK's own threads cost a refresh on a CPU that has other things to do.

    python -m benchmarks.lapack_threads

Times the eigenproblem of a randomized refresh at rank 128 (144 x 144), with as many LAPACK threads
as there are cores and with one (``OPENBLAS_NUM_THREADS=1``), on an idle machine and beside one and
three busy processes a core. Each case in a process of its own, since the number is read when LAPACK
is loaded.

Prints a table and writes docs/results/lapack_threads.json. Half a minute.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.printed import print_rows

RESULT = Path("docs/results/lapack_threads.json")
COLUMNS, CALLS = 144, 40


def milliseconds() -> float:
    """Median wall time of one eigenproblem in this process."""
    import jax  # noqa: PLC0415  # not in the parent, which forks
    import jax.numpy as jnp  # noqa: PLC0415

    x = jax.random.normal(jax.random.key(0), (COLUMNS, COLUMNS))
    solve = jax.jit(lambda x: jnp.linalg.eigh(x @ x.T))
    times = []
    for _ in range(CALLS):
        begin = time.perf_counter()
        jax.block_until_ready(solve(x))
        times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times)


def keep_busy() -> None:
    """Takes one core for as long as it is let."""
    while True:
        sum(range(1_000_000))


def in_a_process(threads: int) -> float:
    """The same in a new process, with so many LAPACK threads."""
    environment = {"JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "benchmarks.lapack_threads", "--one"]
    done = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, check=True)
    return float(done.stdout)


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    if parser.parse_args().one:
        print(milliseconds())
        return

    from experiments.files import write_atomically  # noqa: PLC0415

    rows, cores = [], os.cpu_count() or 1
    for beside in (0, cores, 3 * cores):
        busy = [multiprocessing.Process(target=keep_busy, daemon=True) for _ in range(beside)]
        for process in busy:
            process.start()
        for threads in (cores, 1):
            rows.append(
                {
                    "lapack_threads": threads,
                    "busy_processes_beside": beside,
                    "eigenproblem_ms": in_a_process(threads),
                }
            )
        for process in busy:
            process.kill()
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(RESULT, json.dumps({"cores": cores, "rows": rows}, indent=1) + "\n")
    print_rows(rows)


if __name__ == "__main__":
    main()

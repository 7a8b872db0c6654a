"""Mutation check: breaks the library on purpose, one piece at a time; the suite must notice.

    python tests/campaigns/mutation.py            # all, about an hour on two cores
    python tests/campaigns/mutation.py limiter    # those whose description or file has the word

Each mutant of tests/campaigns/mutants.py is applied to a scratch copy of the library that hides the
installed one. A mutant no test notices has survived. Writes docs/results/mutation.json after every
mutant; started again, it runs those whose file or tests have changed since.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from mutants import MUTANTS, Mutant

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
RESULTS = ROOT / "docs" / "results" / "mutation.json"
PACKAGE = "fira_jax"


def run_tests(
    scratch: Path, tests: tuple[str, ...], timeout: float, processes: int = 1
) -> tuple[bool, str]:
    """Whether the tests pass on the library in ``scratch``, and the first that does not."""
    # From within scratch: Python looks for modules in the working directory first.
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += [f"--rootdir={ROOT}", f"--config-file={ROOT / 'pyproject.toml'}"]
    if processes > 1:
        command += ["--numprocesses", str(processes), "--dist", "loadfile"]
    command += [str(TESTS / name) for name in tests]
    environment = os.environ | {"PYTHONPATH": str(scratch), "JAX_PLATFORMS": "cpu"}
    try:
        done = subprocess.run(
            command, cwd=scratch, env=environment, capture_output=True, text=True, timeout=timeout,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False, f"nothing within {timeout:.0f} s"
    if done.returncode == 0:
        return True, ""
    line = r"^(?:FAILED|ERROR) (?:[^\s:]*/)?(.+?)(?: - .*)?$"
    failed = re.search(line, done.stdout, re.MULTILINE)
    if failed is None:
        raise RuntimeError(f"pytest did not run:\n{done.stdout}\n{done.stderr}")
    return False, failed.group(1)


def require_scratch_is_used(scratch: Path) -> None:
    """The check is worth nothing if the tests import the library as it is."""
    found = subprocess.run(
        [sys.executable, "-c", f"import {PACKAGE}; print({PACKAGE}.__file__)"],
        cwd=scratch, env=os.environ | {"PYTHONPATH": str(scratch)}, capture_output=True, text=True,
        check=True,
    ).stdout  # fmt: skip
    if not Path(found.strip()).is_relative_to(scratch):
        raise RuntimeError(f"tests would import {found.strip()}, expected a module in {scratch}")


def check(mutant: Mutant, scratch: Path, timeout: float) -> dict[str, Any]:
    """What becomes of one mutant."""
    target = scratch / PACKAGE / mutant.file
    source = target.read_text()
    if source.count(mutant.old) != 1:
        raise ValueError(
            f"{mutant.file} has {mutant.old!r} {source.count(mutant.old)} times, not once"
        )
    start = time.monotonic()
    target.write_text(source.replace(mutant.old, mutant.new))
    try:
        passed, failure = run_tests(scratch, mutant.tests, timeout)
    finally:
        target.write_text(source)
    return {
        "why": mutant.why,
        "file": mutant.file,
        "outcome": "survived" if passed else "killed",
        "by": failure,
        "of": fingerprint(mutant),
        "seconds": round(time.monotonic() - start),
    }


def fingerprint(mutant: Mutant) -> str:
    """Stands for what an outcome depends on first of all: the file, the change and its tests."""
    digest = hashlib.sha256(repr(mutant).encode())
    for path in (ROOT / PACKAGE / mutant.file, *(TESTS / name for name in mutant.tests)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def finished_rows(output: Path) -> dict[str, dict[str, Any]]:
    """Outcomes of earlier runs, by the fingerprint of their mutants."""
    if not output.exists():
        return {}
    return {row["of"]: row for row in json.loads(output.read_text())["table"]}


def write(output: Path, rows: list[dict[str, Any]]) -> None:
    """Records the outcomes so far."""
    table = sorted(rows, key=lambda row: (row["file"], row["why"]))
    results = {"mutants": len(rows), "survivors": surviving(rows), "table": table}
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    os.replace(temporary, output)


def surviving(rows: list[dict[str, Any]]) -> list[str]:
    """The mutants no test noticed."""
    return [row["why"] for row in rows if row["outcome"] == "survived"]


def main() -> None:
    """Runs the check from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("word", nargs="?", default="")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for one mutant")
    parser.add_argument("--jobs", type=int, default=2, help="mutants under test at a time")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    chosen = [m for m in MUTANTS if args.word in f"{m.why} {m.file}"]
    done = finished_rows(args.output)
    rows = [done[of] for of in map(fingerprint, chosen) if of in done]
    pending = [m for m in chosen if fingerprint(m) not in done]
    print(f"{len(rows)} of {len(chosen)} mutants are known from before", flush=True)

    with tempfile.TemporaryDirectory() as directory:
        copies: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for job in range(args.jobs):
            scratch = Path(directory).resolve() / str(job)
            shutil.copytree(
                ROOT / PACKAGE, scratch / PACKAGE, ignore=shutil.ignore_patterns("__pycache__")
            )
            require_scratch_is_used(scratch)
            copies.put(scratch)
        if pending:
            files = tuple(sorted({name for m in pending for name in m.tests}))
            print(f"unbroken, on {', '.join(files)} ...", flush=True)
            passed, failure = run_tests(scratch, files, 10 * args.timeout, args.jobs)
            if not passed:
                sys.exit(f"the suite fails on the library as it is: {failure}")

        def on_a_free_copy(mutant: Mutant) -> dict[str, Any]:
            scratch = copies.get()
            try:
                return check(mutant, scratch, args.timeout)
            finally:
                copies.put(scratch)

        with ThreadPool(args.jobs) as pool:
            for row in pool.imap_unordered(on_a_free_copy, pending):
                rows.append(row)
                print("{i:3d}/{n} {outcome:8s} {seconds:4d} s  {why} ({file}): {by}".format(
                    i=len(rows), n=len(chosen), **row), flush=True)  # fmt: skip
                if not args.word:
                    write(args.output, rows)

    survivors = surviving(rows)
    print(f"{len(rows) - len(survivors)} of {len(rows)} killed; survivors: {survivors or 'none'}")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()

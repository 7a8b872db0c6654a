"""Hostile campaign: thousands of odd trees, bad gradients and mistakes; each works or is refused.

    python tests/campaigns/hostile.py --cases 20000

The cases run in a process of their own, which is replaced when one of them crashes it or takes too
long. Counts by outcome go to docs/results/hostile.json. About half an hour on two quiet cores.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from hostile_cases import RECOVERY, STEPS, Structure, history, mistake, structure

import fira_jax

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "hostile.json"
MISTAKES = 0.3  # share of the cases
GOOD = ("works", "refused")


class Record(NamedTuple):
    """What became of one case."""

    index: int
    kind: str
    outcome: str
    detail: str = ""


# --- one case ---------------------------------------------------------------------------------


def walk(of: Structure) -> Callable[[Any], Any]:
    """Jitted: gradients of all steps -> largest magnitudes in updates and state, limiter norms."""

    def largest(tree: Any) -> jax.Array:
        leaves = [jnp.max(jnp.abs(x.astype(float)), initial=0) for x in jax.tree.leaves(tree)]
        return jnp.stack([*leaves, jnp.zeros([])])

    def is_limiter(x: Any) -> bool:
        return isinstance(x, fira_jax.transforms.NormGrowthLimitState)

    @jax.jit
    def run(grads: Any) -> Any:
        params = jax.tree.map(jnp.asarray, of.params)

        def step(state: Any, grad: Any) -> Any:
            updates, state = of.tx.update(grad, state, params)
            limiters = [x for x in jax.tree.leaves(state, is_leaf=is_limiter) if is_limiter(x)]
            norms = [x.reshape(-1) for x in jax.tree.leaves(limiters)]
            return state, (
                largest(updates),
                largest(state),
                jnp.concatenate([*norms, jnp.zeros(0)]),
            )

        return jax.lax.scan(step, of.tx.init(params), grads, length=STEPS + RECOVERY)[1]

    return run


def judge_history(of: Structure, run: Callable[[Any], Any], grads: Any) -> tuple[str, str]:
    """Every update and state finite, and after some ordinary steps everything moves again."""
    updates, state, limits = (np.asarray(x) for x in run(grads))
    for name, values in (("update", updates), ("state", state)):
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(bad):
            return "not finite", f"{name} from step {bad[0]}"
    moving = [x.size > 0 for x in jax.tree.leaves(of.params)]
    if not (updates[-1][:-1][moving] > 0).all():
        return "dead", f"no update {RECOVERY} steps later"
    # 0 is "no residual yet"; a limiter that remembers a vanishing norm holds all others down.
    # (After gradients of 1e18 the second moment, as ever with Adam, has made everything small.)
    spikes = [
        (np.abs(x) > 1e9) & (np.abs(x) < 1e20) for x in map(np.asarray, jax.tree.leaves(grads))
    ]
    if not any(x.any() for x in spikes) and ((limits[-1] > 0) & (limits[-1] < 1e-5)).any():
        return "dead", f"limiter at {limits[-1].min()} {RECOVERY} steps later"
    return "works", ""


def judge_mistake(rng: np.random.Generator) -> tuple[str, str, str]:
    """One clear error that says what is wrong."""
    wrong = mistake(rng)
    try:
        wrong.act()
    except Exception as error:
        message = str(error) if isinstance(error, ValueError | TypeError) else repr(error)
        missing = [part for part in wrong.message_names if part not in message]
        if missing:
            return wrong.kind, "unclear error", f"{missing} not in: {message[:300]}"
        return wrong.kind, "refused", ""
    return wrong.kind, "accepted a mistake", ""


def run_cases(start: int, stop: int, per_structure: int, seed: int) -> Iterator[Record]:
    """Runs cases one by one; each depends on nothing but its index and the seed."""
    block, of, run = -1, None, None
    for index in range(start, stop):
        rng = np.random.default_rng([seed, index])
        if rng.random() < MISTAKES:
            yield Record(index, *judge_mistake(rng))
            continue
        if index // per_structure != block:
            block = index // per_structure
            of = structure(np.random.default_rng([seed, block, 0]))
            run = walk(of)
        what, when, grads = history(rng, of)
        kind = f"{what}, {when}"
        try:
            outcome, detail = judge_history(of, run, grads)
        except Exception as error:  # whatever it is, the campaign goes on
            outcome, detail = "refused a legal case", f"{type(error).__name__}: {error}"[:500]
        yield Record(index, kind, outcome, f"{detail}: {of.description}" if detail else "")


# --- all of them ------------------------------------------------------------------------------


def _work(to_parent: Connection, *arguments: Any) -> None:
    warnings.simplefilter("ignore")  # of trees without matrices, here a third of them
    for record in run_cases(*arguments):
        to_parent.send(record)


def campaign(
    cases: int,
    per_structure: int,
    seed: int = 0,
    timeout: float = 300,
    report: Callable[[Record], None] = lambda record: None,
) -> dict[str, Any]:
    """Runs them all.

    Args:
      cases: how many.
      per_structure: how many share one compiled program.
      seed: of everything that is drawn.
      timeout: seconds after which a case (with its compilation) counts as hung.
      report: called with each record as it comes.

    Returns:
      Counts by kind of case and outcome, and the first failures in full.
    """
    context = multiprocessing.get_context("spawn")  # a fork of a threaded JAX may deadlock
    records: list[Record] = []
    while len(records) < cases:
        ours, theirs = context.Pipe(duplex=False)
        arguments = (theirs, len(records), cases, per_structure, seed)
        worker = context.Process(target=_work, args=arguments, daemon=True)
        worker.start()
        theirs.close()
        while len(records) < cases:
            try:
                hung = not ours.poll(timeout)
                record = Record(len(records), "unknown", "hung") if hung else ours.recv()
            except EOFError:
                record = Record(len(records), "unknown", "crashed")
            records.append(record)
            report(record)
            if record.outcome in ("hung", "crashed"):
                worker.kill()
                break
        worker.join()
        ours.close()

    kinds: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for record in records:
        kinds[record.kind][record.outcome] += 1
    failures = [record._asdict() for record in records if record.outcome not in GOOD]
    return {
        "cases": cases,
        "seed": seed,
        "structures": -(-cases // per_structure),
        "outcomes": dict(collections.Counter(record.outcome for record in records)),
        "by_kind": {kind: dict(kinds[kind]) for kind in sorted(kinds)},
        "failures": failures[:200],
    }


def main() -> None:
    """Runs the campaign from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--per-structure", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    start = time.monotonic()

    def show(record: Record) -> None:
        done = record.index + 1
        if record.outcome not in GOOD:
            sys.stderr.write(f"\n{record}\n")
        if done % 20 == 0 or done == args.cases:
            filled = 40 * done // args.cases
            elapsed = time.monotonic() - start
            left = elapsed / done * (args.cases - done) / 60
            bar = "#" * filled + "." * (40 - filled)
            sys.stderr.write(f"\r[{bar}] {done}/{args.cases} cases, {left:.0f} min left ")

    results = campaign(args.cases, args.per_structure, args.seed, report=show)
    sys.stderr.write("\n")
    results["seconds"] = round(time.monotonic() - start)
    results["command"] = (
        f"python tests/campaigns/hostile.py --cases {args.cases} --seed {args.seed}"
    )
    args.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = args.output.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(temporary, args.output)
    for outcome, count in results["outcomes"].items():
        print(f"{count:7d}  {outcome}")
    sys.exit(bool(results["failures"]))


if __name__ == "__main__":
    main()

"""Breaks a run on purpose, again and again, and compares what comes out with an undisturbed one.

    python -m tests.chaos --disturbances 40 --seed 0      # writes docs/results/chaos.json

A small LLaMA trains through ``experiments.pretrain`` in processes of its own on this machine. At
random steps it is killed (9, 15, 2), finds no room on its disk, gets a second process beside it,
finds files of its newest checkpoint damaged, its log cut or a foreign folder among its checkpoints;
a second run changes its number of devices, 1 -> 4 -> 2. Bounded in count and in time.

Nothing may hang, end in a traceback, or be lost but what was announced: the metrics of all steps
must equal the undisturbed run's to the bit, to 1e-5 where the number of devices changed.
"""

import argparse
import collections
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.files import write_atomically
from experiments.training.interrupt import RESUME_ME
from experiments.training.metrics import read_metrics
from tests.experiments.tiny_run import write_inputs

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "chaos.json"
PATIENCE = 240.0  # seconds that one process may take; a busy machine imports slowly
KINDS = (
    "SIGKILL", "SIGTERM", "SIGINT", "full disk", "second process", "damaged checkpoint",
    "cut log", "foreign folder",
)  # fmt: skip


class ChaosError(AssertionError):
    """Something hung, ended in a traceback, or came out different."""


class Chaos:
    """One run and what is done to it.

    Args:
        folder: Gets inputs, cache and the run.
        steps: Length of the run.
        seed: Decides what happens when.
    """

    def __init__(self, folder: Path, steps: int, seed: int):
        self.folder, self.steps = folder, steps
        self.random = random.Random(seed)
        self.flags = [
            *write_inputs(folder),
            f"--steps={steps}",
            "--eval-every=20",
            "--checkpoint-every=10",
            "--optimizer=adamw",
        ]
        self.environment = os.environ | {
            "FIRA_JAX_CACHE": str(folder / "cache"),
            "JAX_PLATFORMS": "cpu",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": str(ROOT),
        }
        self.announced: list[str] = []

    def start(self, name: str, *flags: str, devices: int = 1, largest: int = 0) -> subprocess.Popen:
        """A process that trains, or goes on; files above ``largest`` bytes can't be written."""
        mesh = [f"--mesh=fsdp={devices}"] if devices > 1 else []
        xla = f"--xla_force_host_platform_device_count={devices}"

        command = [sys.executable, "-m", "experiments.pretrain", *self.flags, *mesh, *flags]
        process = subprocess.Popen(
            [*command, f"--output-dir={self.folder / name}"],
            env=self.environment | {"XLA_FLAGS": xla},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if largest:
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (largest, hard))
        return process

    def end(self, process: subprocess.Popen, *codes: int) -> str:
        """Waits for a process; it must end with one of these codes, without a traceback."""
        try:
            said, _ = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            raise ChaosError(f"hangs: {process.communicate()[0][-2000:]}") from None
        if process.returncode not in codes or "Traceback" in said:
            raise ChaosError(f"exit code {process.returncode}, expected {codes}: {said[-3000:]}")
        self.announced += [
            line for line in said.splitlines() if "damaged" in line or "lost" in line
        ]
        return said

    def reached(self, name: str) -> int:
        """The last step in the log."""
        records = read_metrics(self.folder / name / "metrics.jsonl")
        return records[-1]["step"] if records else 0

    def wait_for(self, process: subprocess.Popen, name: str) -> None:
        """Until a random number of further steps is done, or the run ends."""
        goal = self.reached(name) + self.random.randint(1, 25)
        end = time.monotonic() + PATIENCE
        while self.reached(name) < goal and process.poll() is None:
            if time.monotonic() > end:
                process.kill()
                raise ChaosError(f"no progress: {process.communicate()[0][-2000:]}")
            time.sleep(0.002)

    def disturb(self, kind: str, name: str) -> str:
        """One process of the run, and one thing that happens to it; how it ended."""
        run = self.folder / name
        if kind in ("damaged checkpoint", "cut log", "foreign folder"):
            self.damage(kind, run)
            process = self.start(name)
            self.wait_for(process, name)
            process.kill()
            self.end(process, -signal.SIGKILL, 0)
            return "went on"
        if kind == "full disk":
            log = run / "metrics.jsonl"
            largest = (log.stat().st_size if log.exists() else 0) + self.random.randint(500, 9000)
            said = self.end(self.start(name, largest=largest), 0, 1)
            return said.strip().splitlines()[-1][:100]
        process = self.start(name)
        self.wait_for(process, name)
        if kind == "second process":
            other = self.end(self.start(name), 0, 1)
            process.kill()
            self.end(process, -signal.SIGKILL, 0)
            return "refused" if "is in use by process" in other else "came too late"
        process.send_signal(signal.Signals[kind])
        self.end(process, -signal.SIGKILL if kind == "SIGKILL" else RESUME_ME, 0)
        return f"exit code {process.returncode}"

    def damage(self, kind: str, run: Path) -> None:
        """Harms files of a run that stands still; the last good checkpoint is left alone."""
        checkpoints = sorted(
            (p for p in run.glob("checkpoints/*") if p.name.isdecimal()), key=lambda p: int(p.name)
        )
        if kind == "foreign folder":
            (run / "checkpoints" / "99999").mkdir(parents=True, exist_ok=True)
        if kind == "cut log" and (log := run / "metrics.jsonl").exists():
            os.truncate(log, self.random.randint(log.stat().st_size // 2, log.stat().st_size))
        if kind == "damaged checkpoint" and len(checkpoints) > 1:
            files = sorted(path for path in checkpoints[-1].rglob("*") if path.is_file())
            self.harm(self.random.choice(files))

    def harm(self, path: Path) -> None:
        """Empties, halves, deletes a file or flips a bit of it."""
        data = bytearray(path.read_bytes())
        how = self.random.choice(["empty", "halve", "delete", "flip"])
        if how == "delete":
            path.unlink()
            return
        if how == "flip" and data:
            data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
        path.write_bytes(data[: {"empty": 0, "halve": len(data) // 2}.get(how, len(data))])

    def compare(self, name: str, undisturbed: str, tolerance: float = 0.0) -> float:
        """The largest relative difference of any number; steps lost must have been announced."""
        logs = [read_metrics(self.folder / each / "metrics.jsonl") for each in (name, undisturbed)]
        found, expected = ({record["step"]: record for record in log} for log in logs)
        missing = expected.keys() - found.keys()
        if missing and not any("lost, in the log only" in line for line in self.announced):
            raise ChaosError(f"steps {sorted(missing)} are lost without a word")
        worst = 0.0
        for step, record in found.items():
            for key, value in expected[step].items():
                worst = max(worst, abs(record[key] - value) / max(abs(value), 1e-30))
        if worst > tolerance:
            raise ChaosError(f"{name} differs from the undisturbed run by {worst:.1e}")
        return worst


def storm(chaos: Chaos, kinds: list[str], minutes: float, say: Callable[[str], None]) -> dict:
    """Disturbs a run in these ways, lets it finish, compares."""
    chaos.end(chaos.start("undisturbed"), 0)
    end = time.monotonic() + 60 * minutes
    outcomes: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    done = 0
    for kind in kinds:
        if time.monotonic() > end or (chaos.folder / "run" / "summary.json").exists():
            break
        outcome = chaos.disturb(kind, "run")
        outcomes[kind][outcome.split(": ")[0]] += 1
        done += 1
        say(f"{done}: {kind}: {outcome}; step {chaos.reached('run')}")
    chaos.end(chaos.start("run"), 0)
    worst = chaos.compare("run", "undisturbed")
    return {
        "disturbances": done,
        "steps": chaos.steps,
        "outcomes": {kind: dict(counts) for kind, counts in outcomes.items()},
        "announced": len(chaos.announced),
        "largest_difference": worst,
    }


def devices(chaos: Chaos, counts: tuple[int, ...] = (1, 4, 2)) -> dict[str, Any]:
    """A run that goes on with other numbers of devices, killed in between."""
    chaos.end(chaos.start("one device"), 0)
    for count in counts[:-1]:
        process = chaos.start("many", devices=count)
        chaos.wait_for(process, "many")
        process.send_signal(signal.SIGTERM)
        chaos.end(process, RESUME_ME, 0)
    chaos.end(chaos.start("many", devices=counts[-1]), 0)
    worst = chaos.compare("many", "one device", 1e-5)
    return {"devices": list(counts), "steps": chaos.steps, "largest_difference": worst}


def main() -> None:
    """The long version."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--disturbances", type=int, default=40)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    choose = random.Random(options.seed)
    kinds = list(KINDS)
    while len(kinds) < options.disturbances:
        kinds.append(choose.choice(KINDS))
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        (folder / "a").mkdir()
        (folder / "b").mkdir()
        one = storm(
            Chaos(folder / "a", options.steps, options.seed),
            kinds[: options.disturbances],
            options.minutes,
            lambda line: print(line, flush=True),
        )
        two = devices(Chaos(folder / "b", 60, options.seed))
    finally:
        shutil.rmtree(folder)
    result = {"seed": options.seed, "one_device": one, "changing_devices": two}
    write_atomically(RESULTS, json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

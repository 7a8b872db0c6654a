"""Breaks a run on purpose, again and again, and compares what comes out with an undisturbed one.

    python -m tests.chaos --disturbances 40 --seed 0      # writes docs/results/chaos.json

The same command goes on where it was stopped: what was done so far is kept in ``--folder``.

A small LLaMA trains through ``experiments.pretrain`` in processes of its own on this machine. At
random steps it is killed (9, 15, 2), finds no room on its disk, gets a second process beside it,
finds files of its newest checkpoint damaged, its log cut or a foreign folder among its checkpoints;
a second run changes its number of devices, 1 -> 4 -> 2. Bounded in count and in time.

Nothing may hang, end in a traceback, or be lost but what was announced: the metrics of all steps
must equal the undisturbed run's to the bit, to 1e-5 where the number of devices changed.
"""

import argparse
import atexit
import collections
import json
import os
import random
import re
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
from tests.xla_flags import xla_flags

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "chaos.json"
PATIENCE = 600.0  # seconds that one process may take; on a busy machine each does
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
        self.folder, self.steps, self.seed = folder, steps, seed
        self.random = random.Random(seed)
        inputs = folder / "inputs"
        shutil.rmtree(inputs, ignore_errors=True)
        inputs.mkdir(parents=True)
        # Runs use no PyTorch, but where it is installed tensorboardX imports it, for seconds.
        (inputs / "torch.py").write_text("raise ImportError('not needed here')\n")
        self.flags = [
            *write_inputs(inputs),
            f"--steps={steps}",
            "--eval-every=20",
            "--checkpoint-every=10",
            "--optimizer=adamw",
        ]
        self.environment = os.environ | {
            "FIRA_JAX_CACHE": str(folder / "cache"),
            "JAX_PLATFORMS": "cpu",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": os.pathsep.join([str(inputs), str(ROOT)]),
        }
        self.announced: list[str] = []

    def start(self, name: str, *flags: str, devices: int = 1, largest: int = 0) -> subprocess.Popen:
        """A process that trains, or goes on; files above ``largest`` bytes can't be written."""
        mesh = [f"--mesh=fsdp={devices}"] if devices > 1 else []
        xla = xla_flags(f"--xla_force_host_platform_device_count={devices}")

        command = [sys.executable, "-m", "experiments.pretrain", *self.flags, *mesh, *flags]
        process = subprocess.Popen(
            [*command, f"--output-dir={self.folder / name}"],
            env=self.environment | {"XLA_FLAGS": xla},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        atexit.register(process.kill)  # no run goes on behind a storm that ended
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
            line.replace(str(self.folder), "")
            for line in said.splitlines()
            if "is damaged" in line or "are lost" in line
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
            process, before = self.start(name), len(self.announced)
            self.wait_for(process, name)
            process.kill()
            self.end(process, -signal.SIGKILL, 0)
            return "said what was lost" if len(self.announced) > before else "lost nothing"
        if kind == "full disk":
            log = run / "metrics.jsonl"
            largest = (log.stat().st_size if log.exists() else 0) + self.random.randint(500, 9000)
            said = self.end(self.start(name, largest=largest), 0, 1)
            last = said.strip().splitlines()[-1]
            return "checkpoint not written" if "could not be written" in last else last[:60]
        process = self.start(name)
        self.wait_for(process, name)
        if kind == "second process":
            # A few steps take less than the second one's start, so the first waits for it.
            process.send_signal(signal.SIGSTOP)
            other = self.end(self.start(name), 0, 1)
            process.send_signal(signal.SIGCONT)
            self.wait_for(process, name)
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
            size = log.stat().st_size  # some twenty lines: checkpoints know the last ten
            os.truncate(log, max(size - self.random.randint(1, 3000), 0))
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

    def compare(self, name: str, undisturbed: str, tolerance: float = 0.0) -> dict[str, Any]:
        """The largest relative difference of any number; steps lost must have been announced."""
        logs = [read_metrics(self.folder / each / "metrics.jsonl") for each in (name, undisturbed)]
        found, expected = ({record["step"]: record for record in log} for log in logs)
        said = re.findall(r"steps (\d+) to (\d+) are lost, in the log", "\n".join(self.announced))
        announced = {step for first, last in said for step in range(int(first), int(last) + 1)}
        if missing := expected.keys() - found.keys() - announced:
            raise ChaosError(f"steps {sorted(missing)} are lost without a word")
        worst = 0.0
        for step, record in found.items():
            for key, value in expected[step].items():
                worst = max(worst, abs(record[key] - value) / max(abs(value), 1e-30))
        if worst > tolerance:
            raise ChaosError(f"{name} differs from the undisturbed run by {worst:.1e}")
        lost = len(expected.keys() - found.keys())
        return {
            "steps_in_the_log": len(found),
            "announced_as_lost": lost,
            "largest_difference": worst,
        }


def storm(chaos: Chaos, kinds: list[str], minutes: float, say: Callable[[str], None]) -> dict:
    """Disturbs a run in these ways, lets it finish, compares.

    What was done is kept in the folder, so that a storm which was stopped goes on.
    """
    kept = chaos.folder / "storm.json"
    done: list[list[str]] = []
    if kept.exists():
        done, chaos.announced = json.loads(kept.read_text())
    chaos.end(chaos.start("undisturbed"), 0)
    end = time.monotonic() + 60 * minutes
    for number, kind in enumerate(kinds[len(done) :], len(done)):
        if time.monotonic() > end or (chaos.folder / "run" / "summary.json").exists():
            break
        chaos.random = random.Random(f"{chaos.seed} {number}")
        outcome = chaos.disturb(kind, "run")
        done.append([kind, outcome])
        write_atomically(kept, json.dumps([done, chaos.announced]))
        say(f"{number + 1}/{len(kinds)}: {kind}: {outcome}; step {chaos.reached('run')}")
    chaos.end(chaos.start("run"), 0)
    outcomes = collections.Counter((kind, outcome) for kind, outcome in done)
    return {
        "disturbances": len(done),
        "steps": chaos.steps,
        **chaos.compare("run", "undisturbed"),
        "outcomes": [
            {"disturbance": kind, "what came of it": outcome, "times": times}
            for (kind, outcome), times in sorted(outcomes.items())
        ],
        "announced": chaos.announced,
    }


def devices(chaos: Chaos, counts: tuple[int, ...] = (1, 4, 2)) -> dict[str, Any]:
    """A run that goes on with other numbers of devices, told to leave in between."""
    # Rounding grows with every update, the faster the larger the steps: by 100 of 1e-2 it is 1e-2.
    slowly = "--lr=1e-3"
    chaos.end(chaos.start("one device", slowly), 0)
    changed_after = []
    for count in counts[:-1]:
        process = chaos.start("many", slowly, devices=count)
        chaos.wait_for(process, "many")
        process.send_signal(signal.SIGTERM)
        chaos.end(process, RESUME_ME, 0)
        changed_after.append(chaos.reached("many"))
    chaos.end(chaos.start("many", slowly, devices=counts[-1]), 0)
    return {
        "disturbances": len(changed_after),
        "steps": chaos.steps,
        "changed_after_steps": changed_after,
        **chaos.compare("many", "one device", 1e-5),
    }


def main() -> None:
    """The long version."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--disturbances", type=int, default=40)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the runs are, deleted at the end")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.gettempdir(), f"fira_jax_chaos_{options.seed}")
    choose = random.Random(options.seed)
    kinds = list(KINDS)
    while len(kinds) < options.disturbances:
        kinds.append(choose.choice(KINDS))
    one = storm(
        Chaos(folder / "storm", options.steps, options.seed),
        kinds[: options.disturbances],
        options.minutes,
        lambda line: print(line, flush=True),
    )
    shutil.rmtree(folder / "devices", ignore_errors=True)
    two = devices(Chaos(folder / "devices", 100, options.seed))
    result = {
        "seed": options.seed,
        "outcomes": one.pop("outcomes"),
        "announced": one.pop("announced"),
        "runs": {"one device": one, "on 1, then 4, then 2 devices": two},
    }
    write_atomically(RESULTS, json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()

"""``python -m experiments.pretrain``: pre-train a LLaMA on real text. See ``--help``."""

import contextlib
import os
import sys

import jax

from experiments import mesh
from experiments.compiled import cache_compiled
from experiments.files import one_line
from experiments.text.corpus import CorpusError
from experiments.text.packages import DownloadError
from experiments.training import config, pretraining
from experiments.training.checkpoint import CheckpointError
from experiments.training.interrupt import RESUME_ME, InterruptedRun, heard
from experiments.training.lock import InUseError
from experiments.training.report import DivergedError

EXPECTED_ERRORS = (
    ValueError, OSError, CorpusError, DownloadError, DivergedError, CheckpointError, InUseError,
)  # fmt: skip


def main() -> None:
    """Runs the command line; expected failures end in one clear line, not in a traceback."""
    try:
        with heard():
            _run()
    except EXPECTED_ERRORS as error:
        sys.exit(f"error: {one_line(error)}")
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        # What is left of a run of several processes can't go on, nor wait for the others to end.
        print(f"error: another process of this run is gone ({one_line(error)[:100]}); start all "
              "again: the same command continues", file=sys.stderr, flush=True)  # fmt: skip
        os._exit(RESUME_ME)
    except (InterruptedRun, KeyboardInterrupt) as interruption:
        print(str(interruption) or "interrupted; the same command continues", file=sys.stderr)
        sys.exit(RESUME_ME)


def _run() -> None:
    run = config.parse()
    if run.distributed:
        mesh.join(run.distributed)
    cache_compiled()
    # All processes do the same; one speaks.
    with open(os.devnull, "w") as nowhere, contextlib.ExitStack() as stack:
        if not mesh.is_first_process():
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        pretraining.run(run)


if __name__ == "__main__":
    main()

"""``python -m experiments.pretrain``: pre-train a LLaMA on real text. See ``--help``."""

import contextlib
import os
import sys

from experiments import mesh
from experiments.text.corpus import CorpusError
from experiments.text.packages import DownloadError
from experiments.training import config
from experiments.training import loop as train

EXPECTED_ERRORS = (ValueError, FileNotFoundError, CorpusError, DownloadError, train.DivergedError)


def main() -> None:
    """Runs the command line; expected failures end in one clear line, not in a traceback."""
    try:
        run = config.parse()
        if run.distributed:
            mesh.join(run.distributed)
        # All processes do the same; one speaks.
        with open(os.devnull, "w") as nowhere, contextlib.ExitStack() as stack:
            if not mesh.is_first_process():
                stack.enter_context(contextlib.redirect_stdout(nowhere))
            train.run(run)
    except EXPECTED_ERRORS as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command continues from the last checkpoint")


if __name__ == "__main__":
    main()

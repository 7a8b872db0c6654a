"""``python -m experiments.pretrain``: pre-train a LLaMA on real text. See ``--help``."""

import sys

from experiments import config, train
from experiments.corpus import CorpusError
from experiments.packages import DownloadError

EXPECTED_ERRORS = (ValueError, FileNotFoundError, CorpusError, DownloadError, train.DivergedError)


def main() -> None:
    """Runs the command line; expected failures end in one clear line, not in a traceback."""
    try:
        train.run(config.parse())
    except EXPECTED_ERRORS as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command continues from the last checkpoint")


if __name__ == "__main__":
    main()

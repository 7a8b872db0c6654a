"""``python -m experiments.finetune``: fine-tune a LLaMA on a task. See ``--help``."""

import sys

from experiments.compiled import cache_compiled
from experiments.files import one_line
from experiments.pretrain import EXPECTED_ERRORS
from experiments.training import finetune_config, finetuning
from experiments.training.interrupt import RESUME_ME, InterruptedRun, heard


def main() -> None:
    """Runs the command line; expected failures end in one clear line, not in a traceback."""
    try:
        with heard():
            config = finetune_config.parse()
            cache_compiled()
            finetuning.run(config)
    except EXPECTED_ERRORS as error:
        sys.exit(f"error: {one_line(error)}")
    except (InterruptedRun, KeyboardInterrupt) as interruption:
        print(str(interruption) or "interrupted; the same command continues", file=sys.stderr)
        sys.exit(RESUME_ME)


if __name__ == "__main__":
    main()

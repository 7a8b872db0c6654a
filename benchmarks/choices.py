"""What each of Fira's choices does to the loss, beside the defaults.

    python -m benchmarks.choices

Trains llama_1m on real text, byte by byte: what becomes of the moments at a refresh, where the
basis comes from, the form of the paper and that of its authors' code, the limiter, the
side. One learning rate for all, so that nothing else differs. Writes docs/results/choices.json
after every run; a second call goes on where the first was stopped.
"""

from pathlib import Path
from typing import Any

import fira_jax
from benchmarks.short_runs import Run, beside, compare, low_rank

RESULT = Path("docs/results/choices.json")


def fira(**options: Any) -> Run:
    """Fira at one learning rate."""
    return Run(low_rank(fira_jax.fira, **options), 0.01)


DEFAULT = "Fira"
CHOICES: dict[str, dict[str, Any]] = {
    "moments carried into the new basis": {"moments": "carry"},
    "exact basis (svd)": {"basis": "svd"},
    "exact basis, moments carried": {"basis": "svd", "moments": "carry"},
    "cosine basis (dct)": {"basis": "dct"},
    "random basis": {"basis": "random"},
    "no limiter": {"gamma": None},
    "one scale a matrix": {"granularity": "matrix"},
    "the paper's form": {"form": "paper"},
    "long side": {"side": "long"},
}
RUNS = {DEFAULT: fira()} | {
    name: beside(DEFAULT, fira(**options)) for name, options in CHOICES.items()
}

if __name__ == "__main__":
    compare(RUNS, RESULT, __doc__.splitlines()[0])

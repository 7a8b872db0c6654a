"""What quantized state and weights cost where training goes on from trained weights.

    python -m benchmarks.continued

The runs of ``benchmarks.low_precision``, but all from the same weights, which Fira has trained in
float32 for 500 steps, and at a fifth of the learning rate. Such runs stay close to one another,
so that differences of a hundredth of a percent show. Prints a table and writes
docs/results/continued.json after every run; a second call goes on where the first was stopped.
About three quarters of an hour on two cores.
"""

from pathlib import Path

from benchmarks.low_precision import FIRA, RUNS, TEXT
from benchmarks.short_runs import Pretrained, compare

RESULT = Path("docs/results/continued.json")
BEGINNING = Pretrained(FIRA, steps=500, lr_share=0.2)

if __name__ == "__main__":
    compare(RUNS, RESULT, __doc__.splitlines()[0], pretrained=BEGINNING, **TEXT)

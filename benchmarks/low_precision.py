"""What quantized state and weights cost in perplexity, beside the same run in float32.

    python -m benchmarks.low_precision

Trains llama_1m on real text, byte by byte, with optimizer state, bases or weights in fewer bits,
beside a run in float32 from the same first weights over the same batches. Gradients are computed in
float32 always, from whatever the weights are stored as, so that nothing but their storage differs.
From random weights a single pair of runs comes apart by more than most of these effects, so it
takes several seeds (of weights, batches and the basis's sketch); ``benchmarks.continued`` is
finer. Prints a table and writes docs/results/low_precision.json after every run; a second call goes
on where the first was stopped. A run takes two minutes on two cores, four seeds of all two hours.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import optax

import fira_jax
from benchmarks.short_runs import Run, beside, compare, low_rank

RESULT = Path("docs/results/low_precision.json")
TEXT: dict[str, Any] = {"seq_len": 192, "validation_tokens": 131_072}


def in_8_bits(rounding: Literal["stochastic", "nearest"] = "stochastic") -> Any:
    """Adam with its moments in 8 bits, in the subspace and elsewhere."""
    return fira_jax.precision.quantize_state(optax.scale_by_adam(eps=1e-6), rounding=rounding)


def adamw(**options: Any) -> Callable[[optax.Schedule, int], optax.GradientTransformation]:
    """Full-rank Adam, its state in 8 bits if there are any options."""
    adam = optax.scale_by_adam()
    if options:
        adam = fira_jax.precision.quantize_state(adam, **options)
    return lambda lr, _: optax.chain(adam, optax.scale_by_learning_rate(lr))


FOUR_BITS = fira_jax.basis.Quantized(bits=4)
FIRA = Run(low_rank(fira_jax.fira, base_optimizer=optax.scale_by_adam(eps=1e-6)), 0.01)
GALORE = Run(low_rank(fira_jax.galore, base_optimizer=optax.scale_by_adam(eps=1e-6)), 0.02)
ADAMW = Run(adamw(), 0.0025)


RUNS: dict[str, Run] = {
    "Fira": FIRA,
    "Fira, moments 8 bits": beside(
        "Fira", FIRA, make=low_rank(fira_jax.fira, base_optimizer=in_8_bits())
    ),
    "Fira, moments 8 bits, nearest": beside(
        "Fira", FIRA, make=low_rank(fira_jax.fira, base_optimizer=in_8_bits("nearest"))
    ),
    "Fira, moments 8 bits, basis 4": beside(
        "Fira", FIRA, make=low_rank(fira_jax.fira, base_optimizer=in_8_bits(), basis=FOUR_BITS)
    ),
    "Fira, bfloat16 weights": beside("Fira", FIRA, weights="bfloat16"),
    "Fira, bfloat16 weights, stochastic": beside("Fira", FIRA, weights="bfloat16, stochastic"),
    "GaLore": GALORE,
    "Q-GaLore": beside("GaLore", GALORE, make=low_rank(fira_jax.q_galore, eps=1e-6)),
    "Q-GaLore, int8 weights": beside(
        "GaLore", GALORE, make=low_rank(fira_jax.q_galore, eps=1e-6), weights="int8, stochastic"
    ),
    "AdamW": ADAMW,
    "AdamW, moments 8 bits": beside("AdamW", ADAMW, make=adamw(rounding="stochastic")),
    "AdamW, moments 8 bits, nearest": beside("AdamW", ADAMW, make=adamw(rounding="nearest")),
    "AdamW, bfloat16 weights": beside("AdamW", ADAMW, weights="bfloat16"),
    "AdamW, bfloat16 weights, stochastic": beside("AdamW", ADAMW, weights="bfloat16, stochastic"),
}


if __name__ == "__main__":
    # As long as the demo: shorter runs come apart by still more.
    compare(RUNS, RESULT, __doc__.splitlines()[0], steps=500, **TEXT)

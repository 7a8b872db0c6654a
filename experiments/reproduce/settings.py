"""What is the same for every run: the models, the text, the budget of tokens, the seeds."""

import dataclasses
from typing import Any

# Seeds below 100 are for the tables; those of the search for a learning rate are never used there.
SEARCH_SEED = 100
WARMUP_SHARE, MIN_LR_RATIO = 0.1, 0.1


@dataclasses.dataclass(frozen=True)
class Size:
    """One model and how it is trained.

    Attributes:
      model: its file in experiments/configs; the vocabulary is that of bytes.
      ranks: an eighth and a sixteenth of the width (the larger first), unless others are asked for.
      steps: updates of a run, in the search and in the tables.
      batch_size: sequences in a batch.
      seq_len: bytes in a sequence.
      gap: updates between two refreshes, for the methods with a fixed gap of the papers' kind.
      eval_every: updates between two measurements of the validation loss.
      validation_tokens: bytes that it is taken over.
    """

    model: str
    ranks: tuple[int, ...]
    steps: int = 250
    batch_size: int = 8
    seq_len: int = 64
    gap: int = 50
    eval_every: int = 125
    validation_tokens: int = 16_384


SIZES = {
    "200k": Size("llama_200k", (8, 4)),
    "1m": Size("llama_1m", (16, 8)),
    # The setting of the demo: more text in a batch, and more steps.
    "200k-long": Size("llama_200k", (8, 4), steps=500, seq_len=192),
    "1m-long": Size("llama_1m", (16, 8), steps=500, seq_len=192),
    # Without their vocabularies of 32,000 words these are smaller than their names say.
    "3m": Size("llama_20m", (32, 16)),
    "25m": Size("llama_60m", (64, 32), steps=120),
}


def settings() -> dict[str, Any]:
    """All of it, for the JSON files and for the test that compares them with this file."""
    return {
        "tokenizer": "bytes",
        "dataset": "registry",
        "search_seed": SEARCH_SEED,
        "warmup_share": WARMUP_SHARE,
        "min_lr_ratio": MIN_LR_RATIO,
        "sizes": {
            name: {k: list(v) if isinstance(v, tuple) else v for k, v in vars(size).items()}
            for name, size in SIZES.items()
        },
    }

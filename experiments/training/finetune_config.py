"""What one fine-tuning run is."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tyro
from etils import epath

from experiments.llama.adapt import ADAPTERS
from experiments.training.config import PretrainConfig

HELP = """Fine-tune a LLaMA or an encoder on examples or a task, with any optimizer of the family.

  python -m experiments.finetune --task sst2                                # a small model, LoRA
  python -m experiments.finetune --task mine.jsonl --adapter none --optimizer fira --lr 1e-5
  python -m experiments.finetune --model ~/llama-7b --task chats/ --dtype bfloat16 \\
      --adapter none --optimizer fira --layerwise --rank 32                 # a 7B on one small GPU
  python -m experiments.finetune --model minilm --task sst2                 # an encoder: faster
  python -m experiments.finetune ... --memory                               # will it fit? then stop

Tasks by name: boolq piqa siqa hellaswag winogrande arc_easy arc_challenge obqa, commonsense (those
eight together), sst2, trec; and from the Hugging Face hub glue_cola glue_sst2 glue_mrpc glue_qqp
glue_mnli glue_qnli glue_rte glue_wnli, commonsense_170k. Your own: a .jsonl file, or a folder with
train.jsonl and perhaps test.jsonl, on every line one of
  {"prompt": "2 + 2 =", "completion": " 4"}
  {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
  {"text": "a fine film", "label": "positive"}
Only the answers count in the loss. Where the answer is one of several (a label, a choice), accuracy
is reported with its 95 % interval, by the likelihood of each answer.

What to train: --adapter lora (dora, rslora, lora_ga, lora_sb, lora_pro, lora_ggpo, prilora, sora)
freezes the model and trains small factors by AdamW; --adapter pela or maestro puts factors in the
place of every matrix, which wants a --rank of a quarter of the width or more; --adapter none trains
the weights with --optimizer fira, galore, adamw ...
A learning rate that suits LoRA (1e-4 to 1e-3) is ten times too high for AdamW on the weights
(1e-5 to 1e-4); fira and galore, whose subspace part moves at --scale times it, bear more.
Rerunning the same command continues exactly where the run stopped.

The output directory holds config.json, metrics.jsonl, tensorboard/, checkpoints/ and, once
finished, summary.json and model/: a Hugging Face folder with adapters merged, tokenizer included.
"""


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """One run of ``experiments.finetune``."""

    model: str = "smollm2_135m"
    """A Hugging Face folder (config.json, safetensors, tokenizer) of a LLaMA or, to sort texts into
    classes, of a BERT; or smollm2_135m or minilm, one of each, which are fetched."""
    task: str = "sst2"
    """A task's name, a .jsonl file or a folder with train.jsonl; see above."""
    optimizer: str = "adamw"
    """Name in experiments/training/optimizers.py, such as fira, galore, apollo or adamw."""
    adapter: str = "lora"
    """lora, rslora, dora, lora_ga, lora_sb, lora_pro, lora_ggpo, prilora, sora, pela, maestro (all
    by AdamW), or none: the weights themselves are trained."""
    rank: int = 8
    """Of the adapter, or of the optimizer's subspaces."""
    alpha: float = 16.0
    """An adapter's factor is alpha / rank (alpha / sqrt(rank) for rslora)."""
    gate_penalty: float = 0.5
    """SoRA's: how hard the gates of directions that learn little are pulled to zero."""
    noise: float = 0.05
    """LoRA-GGPO's: of weights in training, as a share of their size."""
    prune_every: int = 40
    """PRILoRA's: updates between two prunings."""
    pruned: float = 0.5
    """PRILoRA's: share of a factor that is then made zero, and may grow again."""
    rank_penalty: float = 0.0
    """Maestro's: how hard the last directions of all factors are pulled to zero."""
    distillation: float = 1.0
    """PELA's: how much the loss counts that features and weights stay near the model's."""
    train: Literal["all", "matrices"] = "all"
    """Without an adapter: all weights, or only the matrices of attention and MLP."""
    lr: float = 5e-4
    """Peak learning rate."""
    epochs: float = 3.0
    """How often every example is seen."""
    steps: int | None = None
    """Updates in the whole run; default: as many as --epochs need."""
    warmup_steps: int | None = None
    """Updates of linear warmup from 0; default: a tenth of all, at most 100."""
    min_lr_ratio: float = 0.0
    """Learning rate at the end of the cosine, as a fraction of the peak."""
    batch_size: int = 16
    """Rows per update."""
    seq_len: int | None = None
    """Tokens predicted in a row; default: as the longest example needs, at most 512. Longer
    examples lose their beginning, before an encoder their end."""
    pack: bool = False
    """Put several short examples into a row; none sees another. Needs --seq-len to be worth it."""
    update_proj_gap: int = 200
    """Updates between two refreshes of an optimizer's subspaces."""
    scale: float = 0.25
    """Factor on the low-rank part of the update in Fira, GaLore and their like."""
    weight_decay: float = 0.0
    """Decoupled weight decay, multiplied by the learning rate."""
    grad_clip: float = 1.0
    """Largest global gradient norm; 0 switches clipping off."""
    accumulate: int = 1
    """Micro-batches that one update's batch is split into, to save activation memory."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of weights, activations and optimizer state."""
    remat: bool = False
    """Keep only each layer's input for the backward pass and recompute the rest."""
    layerwise: bool = False
    """Update each layer inside the backward pass, so that the whole gradient never exists: most of
    what makes a 7B fit on a small GPU. Without an adapter only."""
    basis: str | None = None
    """How subspaces are found (randomized, svd, ...); default: the optimizer's own choice."""
    side: Literal["short", "long"] | None = None
    """Which side of a matrix is compressed; default: the optimizer's own choice."""
    seed: int = 0
    """Of adapters, the order of examples and random subspaces."""
    eval_every: int = 200
    """Updates between two evaluations; the last update is always evaluated."""
    eval_examples: int = 200
    """Held-out examples, evenly spread, that these look at."""
    test_examples: int | None = None
    """Held-out examples that the finished model is tested on; default: all."""
    generate: bool = False
    """Test by generation too: greedily, until the text ends, what comes must be the answer."""
    checkpoint_every: int = 200
    """Updates between two checkpoints."""
    stop_after: int | None = None
    """Stop, resumably, after this update."""
    memory: bool = False
    """Print in full what an update will take, and stop."""
    output_dir: str | None = None
    """Where everything about the run goes; default: runs/MODEL-TASK-METHOD."""

    @property
    def directory(self) -> epath.Path:
        """Where the run's files go."""
        method = self.optimizer if self.adapter == "none" else self.adapter
        names = (Path(self.model).name, Path(self.task).stem, method)
        return epath.Path(self.output_dir or f"runs/{'-'.join(names)}")

    def as_pretraining(self, steps: int) -> PretrainConfig:
        """What optimizers and schedules are built from."""
        warmup = self.warmup_steps
        return PretrainConfig(
            model=self.model,
            optimizer=self.optimizer,
            rank=self.rank,
            update_proj_gap=self.update_proj_gap,
            scale=self.scale,
            lr=self.lr,
            steps=steps,
            warmup_steps=min(100, steps // 10) if warmup is None else warmup,
            min_lr_ratio=self.min_lr_ratio,
            batch_size=self.batch_size,
            weight_decay=self.weight_decay,
            grad_clip=self.grad_clip,
            accumulate=self.accumulate,
            layerwise=self.layerwise,
            seed=self.seed,
            basis=self.basis,
            side=self.side,
        )


# What may differ between two commands that continue one run.
FREE_KEYS = frozenset({
    "output_dir", "stop_after", "checkpoint_every", "test_examples", "generate", "memory",
})  # fmt: skip


def resolved(config: FinetuneConfig, model: Any, fingerprints: dict[str, str]) -> Any:
    """Everything that two commands which continue one run have in common."""
    run = {k: v for k, v in dataclasses.asdict(config).items() if k not in FREE_KEYS}
    parts = {"run": run, "model": dataclasses.asdict(model), "data": fingerprints}
    return json.loads(json.dumps(parts, default=str))


def defaults() -> dict[str, dict[str, Any]]:
    """What a key that a run's ``config.json`` does not have stood for."""
    return {"run": dataclasses.asdict(FinetuneConfig())}


def parse(argv: Sequence[str] | None = None) -> FinetuneConfig:
    """The run that a command line describes."""
    config = tyro.cli(FinetuneConfig, args=argv, description=HELP)
    validate(config)
    return config


def validate(config: FinetuneConfig) -> None:
    """Raises a :class:`ValueError` that names the first impossible setting."""
    for name in ("rank", "update_proj_gap", "batch_size", "eval_every", "eval_examples",
                 "checkpoint_every", "accumulate", "steps", "seq_len", "test_examples",
                 "stop_after", "prune_every"):  # fmt: skip
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    for name in ("lr", "scale", "weight_decay", "grad_clip", "epochs", "alpha", "gate_penalty",
                 "noise", "pruned", "rank_penalty", "distillation"):  # fmt: skip
        value = getattr(config, name)
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be a finite number of at least 0, got {value}")
    if config.pruned > 1:
        raise ValueError(f"pruned must be a share of at most 1, got {config.pruned}")
    if config.batch_size % config.accumulate:
        raise ValueError(
            f"batch_size {config.batch_size} does not split into {config.accumulate} equal "
            "micro-batches (accumulate)"
        )
    if config.adapter != "none" and config.adapter not in ADAPTERS:
        names = ", ".join((*sorted(ADAPTERS), "none"))
        raise ValueError(f"unknown adapter {config.adapter!r}; choose from: {names}")
    if config.adapter != "none" and config.optimizer != "adamw":
        raise ValueError(
            f"adapter {config.adapter} is trained by AdamW; for --optimizer {config.optimizer} on "
            "the weights themselves add --adapter none"
        )
    if config.layerwise and (config.adapter != "none" or config.train != "all" or config.pack):
        raise ValueError(
            "layerwise updates whole layers from one text a row: it goes with --adapter none, "
            "--train all and without --pack"
        )

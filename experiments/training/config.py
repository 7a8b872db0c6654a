"""What one pre-training run is, and where each of its values comes from."""

import argparse
import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tyro
import yaml
from etils import epath

from experiments.llama.configs import load_model_config
from experiments.training.checks import validate

HELP = """Pre-train a LLaMA on real text, with any optimizer of the family.

  python -m experiments.pretrain --model llama_1m --optimizer fira
  python -m experiments.pretrain --model llama_60m --optimizer galore --rank 256 --dtype bfloat16
  python -m experiments.pretrain --model llama_60m --help     # the defaults of that model

A value is looked up on the command line, then in --config FILE, then in the `train:` part of the
model's yaml (the paper's settings), then in the built-in defaults; the defaults shown below have
the last three already applied. Rerunning the same command on the same --output-dir continues
exactly where the run stopped, however it stopped; on a finished run it does nothing. SIGTERM and
Ctrl-C save before they leave, with exit code 75: start it again.

The output directory holds config.json (the resolved run), metrics.jsonl (one object a step),
tensorboard/, checkpoints/ and, once finished, summary.json.
"""


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """One run of ``experiments.pretrain``."""

    model: str = "llama_1m"
    """A file in experiments/configs (llama_1m, llama_60m ... llama_7b) or the path of a yaml."""
    optimizer: str = "fira"
    """Name in experiments/training/optimizers.py, such as fira, galore, swan or adamw."""
    parametrization: str | None = None
    """What stands in place of the layers' kernels, of rank --rank and trained by AdamW: lora,
    relora (restarting every --update-proj-gap updates), dora, factorized, cola, sltrain or lost."""
    rank: int = 128
    """Dimension of the subspace that each projected matrix's Adam moments live in."""
    update_proj_gap: int = 200
    """Updates between two refreshes of the subspaces."""
    scale: float = 0.25
    """Factor on the low-rank part of the update (the papers' alpha) in Fira, GaLore and their like;
    methods whose factor means something else keep their own."""
    lr: float = 0.01
    """Peak learning rate. The models' defaults suit Fira and GaLore; AdamW wants about a third."""
    steps: int = 10_000
    """Updates in the whole run; also the length of the learning-rate schedule."""
    warmup_steps: int = 1_000
    """Updates of linear warmup from 0; scales along when only --steps is given."""
    min_lr_ratio: float = 0.1
    """Learning rate at the end of the cosine, as a fraction of the peak."""
    batch_size: int = 512
    """Sequences per update, over all micro-batches."""
    seq_len: int = 256
    """Tokens per sequence."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of weights, activations and optimizer state (the papers train in pure bfloat16)."""
    seed: int = 0
    """Of the initial weights, the data order and random subspaces."""
    eval_every: int = 1_000
    """Updates between two evaluations; the last update is always evaluated."""
    checkpoint_every: int = 500
    """Updates between two checkpoints; the last two and the best evaluated one are kept."""
    output_dir: str | None = None
    """Where everything about the run goes, a folder or an address in an object store such as
    gs://bucket/run; default: runs/MODEL-OPTIMIZER."""
    weight_decay: float = 0.0
    """Decoupled weight decay, multiplied by the learning rate."""
    grad_clip: float = 0.0
    """Largest global gradient norm; 0 switches clipping off."""
    accumulate: int = 1
    """Micro-batches that one update's batch is split into, to save activation memory."""
    remat: bool = False
    """Keep only each layer's input for the backward pass and recompute the rest."""
    layerwise: bool = False
    """Update each layer inside the backward pass, so that the whole gradient never exists. The same
    run up to rounding; --accumulate then cuts the batch within each layer."""
    watch: bool = False
    """Log what the optimizer's subspaces catch and what becomes of the rest (watch/...), and print
    a table of it at the end."""
    adaptive_batch: float = 0.0
    """The norm test's eta: batches grow (by doubling, up to --max-batch-size) until the noise of
    the gradient is below this share of it; 0 switches it off. Needs --accumulate of at least 2."""
    max_batch_size: int = 4_096
    """Largest batch that --adaptive-batch may ask for."""
    dataset: str = "registry"
    """"registry" (English text from pinned packages), "registry_full" (more of it), "c4" (streamed
    from the hub) or a folder of your own .txt or .jsonl."""
    tokenizer: str | None = None
    """"mistral" (32,000 ids), "bpe-N" (trained on the text) or "bytes"; default: as large as the
    model's vocabulary."""
    validation_tokens: int = 131_072
    """Tokens of held-out text that every evaluation averages over."""
    basis: str | None = None
    """How subspaces are found (randomized, svd, ...); default: the optimizer's own choice."""
    side: Literal["short", "long"] | None = None
    """Which side of a matrix is compressed; default: the optimizer's own choice."""
    config: Path | None = None
    """A yaml file with any of these keys, e.g. `lr: 0.02`."""
    stop_after: int | None = None
    """Stop, resumably, after this update; the schedule still spans --steps."""
    mesh: str | None = None
    """How all devices work together, e.g. data=2,fsdp=4,tensor=2; default: one device. A run may be
    continued on another mesh."""
    distributed: str | None = None
    """Be one of several processes: "auto" on TPU pods and under Slurm, Open MPI or Kubernetes, else
    HOST:PORT,COUNT,INDEX. All need the same --output-dir on a disk they share, and a --mesh."""

    @property
    def directory(self) -> epath.Path:
        """Where the run's files go."""
        return epath.Path(self.output_dir or f"runs/{Path(self.model).stem}-{self.optimizer}")


# What may differ between two commands that continue one run: nothing here moves the trajectory (a
# mesh does by rounding: it adds in another order).
FREE_KEYS = frozenset(
    {"output_dir", "config", "stop_after", "checkpoint_every", "mesh", "distributed"}
)


def parse(argv: Sequence[str] | None = None) -> PretrainConfig:
    """The run that a command line describes (see ``HELP`` for the order of precedence)."""
    # The model and the file are looked for first, since everybody else's default depends on them.
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--model")
    early.add_argument("--config", type=Path)
    early.add_argument("--steps", type=int)
    given, _ = early.parse_known_args(argv)
    from_file = _read_yaml(given.config) if given.config else {}
    model = given.model or from_file.get("model", PretrainConfig.model)
    _, from_model = load_model_config(model)

    default = overlay(PretrainConfig(model=model), from_model, f"model {model}, train")
    default = overlay(default, from_file, str(given.config))
    if given.steps is not None:
        default = overlay(default, {"steps": given.steps}, "--steps")
    config = tyro.cli(PretrainConfig, args=argv, default=default, description=HELP)
    validate(config)
    return config


def overlay(base: PretrainConfig, values: Mapping[str, Any], source: str) -> PretrainConfig:
    """``base`` with ``values`` laid over it; ``source`` says in errors where they came from."""
    types = get_type_hints(PretrainConfig)
    if unknown := sorted(set(values) - set(types)):
        raise ValueError(f"{source}: unknown keys {unknown}; known are {sorted(types)}")
    values = dict(values)
    # A model's warmup belongs to its number of steps: one changed alone takes the other along.
    if "steps" in values and "warmup_steps" not in values:
        values["warmup_steps"] = base.warmup_steps * int(values["steps"]) // base.steps
    # YAML reads 1e-3 as text and knows no paths.
    convert: dict[Any, Callable] = {int: operator.index, float: float, Path | None: Path}
    for name, value in values.items():
        choices = get_args(types[name])
        if get_origin(types[name]) is Literal and value not in choices:
            raise ValueError(f"{source}: {name} is {value!r}, expected one of {choices}")
        if types[name] in convert:
            try:
                values[name] = convert[types[name]](value)
            except (TypeError, ValueError):
                expected = getattr(types[name], "__name__", "path")
                raise ValueError(f"{source}: {name} is {value!r}, expected {expected}") from None
    return dataclasses.replace(base, **values)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected `key: value` lines, got {type(values).__name__}")
    return values

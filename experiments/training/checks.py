"""Which settings of a run are impossible, said before anything is compiled."""

import math
from typing import TYPE_CHECKING

from experiments.llama.configs import load_model_config

if TYPE_CHECKING:
    from experiments.training.config import PretrainConfig

_AT_LEAST_ONE = (
    "rank", "update_proj_gap", "steps", "batch_size", "seq_len", "eval_every",
    "checkpoint_every", "accumulate", "validation_tokens", "max_batch_size",
)  # fmt: skip
_NOT_NEGATIVE = ("lr", "scale", "weight_decay", "grad_clip", "adaptive_batch")


def validate(config: "PretrainConfig") -> None:
    """Raises a :class:`ValueError` that names the first impossible setting."""
    _check_numbers(config)
    _check_combinations(config)
    _check_batches(config)


def _check_numbers(config: "PretrainConfig") -> None:
    for name in _AT_LEAST_ONE:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    for name in _NOT_NEGATIVE:
        value = getattr(config, name)
        if not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value}")
        if value < 0:
            raise ValueError(f"{name} must not be negative, got {value}")
    if not 0 <= config.min_lr_ratio <= 1:
        raise ValueError(f"min_lr_ratio must be in [0, 1], got {config.min_lr_ratio}")
    if not 0 <= config.seed < 2**32:
        raise ValueError(f"seed must be in [0, 2^32), got {config.seed}")
    if config.stop_after is not None and config.stop_after < 1:
        raise ValueError(f"stop_after must be at least 1, got {config.stop_after}")
    if not 0 <= config.warmup_steps < config.steps:
        raise ValueError(
            f"warmup_steps must be in [0, steps), got {config.warmup_steps} of {config.steps} steps"
        )
    model, _ = load_model_config(config.model)
    longest = max(model.hidden_size, model.intermediate_size, model.vocab_size)
    if config.rank > longest and config.optimizer != "m_fac":  # there a number of gradients
        raise ValueError(
            f"rank {config.rank} is above {longest}, the longest side of any matrix of model "
            f"{config.model}"
        )


def _check_combinations(config: "PretrainConfig") -> None:
    if config.parametrization and config.optimizer != "adamw":
        raise ValueError(
            f"parametrization {config.parametrization} is trained by AdamW: with it goes "
            f"--optimizer adamw, got {config.optimizer}"
        )
    if config.parametrization and config.layerwise:
        raise ValueError("layerwise is for models of matrices: leave out parametrization")
    if config.distributed and not config.mesh:
        raise ValueError("distributed needs a mesh, such as --mesh fsdp=8")
    if config.layerwise and (config.mesh or config.adaptive_batch):
        other = "mesh" if config.mesh else "adaptive_batch"
        raise ValueError(f"layerwise is for one device and batches of one size: leave out {other}")
    if config.layerwise and config.watch:
        raise ValueError("watch sees the whole model's gradient: leave out layerwise")


def _check_batches(config: "PretrainConfig") -> None:
    if config.adaptive_batch and config.accumulate < 2:
        raise ValueError(
            "adaptive_batch compares the gradients of micro-batches: set accumulate to at least 2"
        )
    if config.adaptive_batch and config.max_batch_size < config.batch_size:
        raise ValueError(
            f"max_batch_size {config.max_batch_size} is below batch_size {config.batch_size}"
        )
    if config.batch_size % config.accumulate:
        raise ValueError(
            f"batch_size {config.batch_size} does not split into {config.accumulate} equal "
            "micro-batches (accumulate)"
        )

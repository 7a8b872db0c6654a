"""Reads `configs/*.yaml`: one file a model, its architecture and how to train it."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import yaml

from experiments.model import LlamaConfig

CONFIG_DIR = Path(__file__).parent / "configs"

TRAIN_KEYS = (
    "optimizer",
    "lr",
    "scale",
    "rank",
    "update_proj_gap",
    "batch_size",
    "seq_len",
    "steps",
    "warmup_steps",
    "min_lr_ratio",
    "weight_decay",
    "grad_clip",
    "dtype",
    "eval_every",
)


def available() -> list[str]:
    """Names of the models that come with the experiments, smallest first."""
    return sorted(
        (path.stem for path in CONFIG_DIR.glob("*.yaml")),
        key=lambda name: load_model_config(name)[0].parameter_count,
    )


def load_model_config(name_or_path: str | Path) -> tuple[LlamaConfig, dict[str, Any]]:
    """Loads a model's architecture and training settings.

    Example:
        >>> config, train = load_model_config("llama_1m")
        >>> config.num_layers, train["rank"]
        (4, 32)

    Args:
        name_or_path: A name from ``available()`` or the path of a YAML file of the same form.

    Returns:
        The architecture, in float32, and the training settings with at least ``TRAIN_KEYS``.
        ``batch_size`` counts sequences per update over all devices and ``dtype`` is the type for
        parameters and activations alike: put it in with ``dataclasses.replace``.

    Raises:
        ValueError: If there is no such model, or a setting is unknown, missing or out of range.
    """
    path = CONFIG_DIR / f"{name_or_path}.yaml"
    if not path.is_file():
        path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        names = "\n".join(
            f"  {name:12} {load_model_config(name)[0].parameter_count:>13,} parameters"
            for name in available()
        )
        raise ValueError(
            f"no model {str(name_or_path)!r}: expected the path of a .yaml file or one of\n{names}"
        )
    content = yaml.load(path.read_text(), Loader=_Loader)
    if not isinstance(content, dict) or set(content) != {"model", "train"}:
        raise ValueError(f"{path}: expected the two sections `model:` and `train:`")
    model, train = content["model"] or {}, content["train"] or {}

    fields = dataclasses.fields(LlamaConfig)
    required = {field.name for field in fields if field.default is dataclasses.MISSING}
    _check_keys(f"{path}, model", model, required, {field.name for field in fields})
    _check_keys(f"{path}, train", train, set(TRAIN_KEYS))
    try:
        return LlamaConfig(**model), train
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}, model: {error}") from error


def _check_keys(
    where: str, given: dict[str, Any], required: set[str], known: set[str] | None = None
) -> None:
    if missing := required - set(given):
        raise ValueError(f"{where}: missing {', '.join(sorted(missing))}")
    if known is not None and (unknown := set(given) - known):
        raise ValueError(
            f"{where}: unknown {', '.join(sorted(unknown))}; expected {', '.join(sorted(known))}"
        )


class _Loader(yaml.SafeLoader):
    """YAML in which `1e-2` is a number; to PyYAML alone it is a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)

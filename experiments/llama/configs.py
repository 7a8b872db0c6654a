"""Reads `configs/*.yaml`: one file a model, its architecture and how to train it."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import yaml

from experiments.llama.model import LlamaConfig

CONFIG_DIR = Path(__file__).parents[1] / "configs"


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
        The architecture, in float32, and the settings of the ``train:`` part, which are options of
        ``experiments.pretrain``; a file may leave any of those out.

    Raises:
        ValueError: If there is no such model, or its architecture is incomplete or impossible.
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
    model, train = _sections(path)
    fields = dataclasses.fields(LlamaConfig)
    if unknown := sorted(set(model) - {field.name for field in fields}):
        known = ", ".join(field.name for field in fields)
        raise ValueError(f"{path}, model: unknown {', '.join(unknown)}; expected some of {known}")
    required = [field.name for field in fields if field.default is dataclasses.MISSING]
    if missing := [name for name in required if name not in model]:
        raise ValueError(f"{path}, model: missing {', '.join(missing)}")
    try:
        return LlamaConfig(**model), train
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}, model: {error}") from error


def _sections(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if isinstance(content, dict) and set(content) <= {"model", "train"}:
        model, train = content.get("model"), content.get("train", {})
        if isinstance(model, dict) and isinstance(train, dict):
            return model, train
    raise ValueError(f"{path}: expected a section `model:` and, if you like, one `train:`")


class _Loader(yaml.SafeLoader):
    """YAML in which `1e-2` is a number; to PyYAML alone it is a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)

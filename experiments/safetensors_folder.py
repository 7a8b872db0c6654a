"""Weights in Hugging Face's manner: a folder with `config.json` and safetensors, one or several."""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from experiments.files import replacing

Names = Callable[[str, np.ndarray], dict[str, np.ndarray]]
"""Views of one of our parameters, given by its path, as the tensors Hugging Face makes of it."""


def write(folder: str | Path, params: Any, names: Names, config: dict[str, Any]) -> None:
    """Writes a model; other files of the folder, such as a tokenizer's, are left alone.

    Args:
        folder: Created if need be.
        params: As ``nnx.to_pure_dict`` gives them; written in their own type.
        names: Of the tensors.
        config: Content of ``config.json``.
    """
    folder = Path(folder)
    tensors = {}
    for key_path, array in jax.tree_util.tree_leaves_with_path(params):
        for name, view in names(_joined(key_path), np.asarray(array)).items():
            tensors[name] = np.ascontiguousarray(view)
    with replacing(folder / "model.safetensors") as file:
        save_file(tensors, file, metadata={"format": "pt"})
    with replacing(folder / "config.json") as file:
        file.write_text(json.dumps(config, indent=2) + "\n")


def read(folder: str | Path, shapes: Any, names: Names, redundant: str) -> Any:
    """Reads the parameters of these shapes, all of which must be there.

    Args:
        folder: Holds ``model.safetensors``, or its ``.index.json`` and shards.
        shapes: A nested dict of them.
        names: Of the tensors.
        redundant: Pattern of the tensors that may be there without a place among the parameters.

    Raises:
        FileNotFoundError: If the folder has no weights.
        ValueError: If tensors are missing, left over or of the wrong shape.
    """
    files = files_of_tensors(folder)

    def read_one(key_path: Any, abstract: jax.ShapeDtypeStruct) -> jax.Array:
        array = np.empty(abstract.shape, abstract.dtype)
        for name, view in names(_joined(key_path), array).items():
            if name not in files:
                raise ValueError(f"{folder}: tensor {name} is missing")
            with _opened(files.pop(name)) as file:
                tensor = file.get_tensor(name)
            if tensor.shape != view.shape:
                raise ValueError(
                    f"{folder}: {name} has shape {tensor.shape}, config.json asks for {view.shape}"
                )
            view[...] = tensor
        return jnp.asarray(array)

    params = jax.tree_util.tree_map_with_path(read_one, shapes)
    if unused := sorted(name for name in files if not re.fullmatch(redundant, name)):
        raise ValueError(f"{folder}: {len(unused)} tensors have no place here, first {unused[0]}")
    return params


def read_config(folder: str | Path) -> dict[str, Any]:
    """What a folder's ``config.json`` says.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is no JSON object.
    """
    return read_object(Path(folder) / "config.json")


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file; raises what :func:`read_config` raises."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected a JSON object")
    return content


def require(folder: str | Path, content: dict[str, Any], supported: dict[str, Any]) -> None:
    """Raises a :class:`ValueError` that names the first entry that is there and differs."""
    for name, value in supported.items():
        if content.get(name) not in (None, value):
            raise ValueError(
                f"{Path(folder) / 'config.json'}: {name} is {content[name]!r}, only {value!r} is "
                "supported"
            )


def renamed(
    folder: str | Path, content: dict[str, Any], names: dict[str, str], required: Collection[str]
) -> dict[str, Any]:
    """The entries of a config under our names, which ``names`` maps to theirs.

    Raises:
        ValueError: If a required one is missing, or one is no number.
    """
    file = Path(folder) / "config.json"
    ours = {
        name: content[theirs] for name, theirs in names.items() if content.get(theirs) is not None
    }
    if missing := [names[name] for name in required if name not in ours]:
        raise ValueError(f"{file}: missing {', '.join(missing)}")
    for name, value in ours.items():
        if not isinstance(value, int | float):
            raise ValueError(f"{file}: {names[name]} is {value!r}, expected a number")
    return ours


def fingerprint(folder: str | Path) -> str:
    """Hexadecimal digest of a folder's weights: of each file's size, first and last mebibyte."""
    digest = hashlib.sha256()
    for path in sorted(set(files_of_tensors(folder).values())):
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest.update(f"{path.name} {size}".encode())
            for start in (0, max(0, size - 2**20)):
                file.seek(start)
                digest.update(file.read(2**20))
    return digest.hexdigest()


def files_of_tensors(folder: str | Path) -> dict[str, Path]:
    """The file of each tensor.

    Raises:
        FileNotFoundError: If the folder has no weights.
    """
    folder = Path(folder)
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        with _opened(single) as file:
            return dict.fromkeys(file.keys(), single)
    if index.is_file():
        shards = read_object(index).get("weight_map")
        if not isinstance(shards, dict):
            raise ValueError(f"{index}: has no weight_map")
        return {name: folder / shard for name, shard in shards.items()}
    raise FileNotFoundError(
        f"{folder} has neither {single.name} nor {index.name}; save weights of another format as "
        "safetensors first"
    )


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="numpy") as tensors:
            yield tensors
    except SafetensorError as error:
        raise ValueError(f"{file}: damaged or cut short ({error})") from None


def _joined(key_path: Any) -> str:
    return jax.tree_util.keystr(key_path, simple=True, separator="/")

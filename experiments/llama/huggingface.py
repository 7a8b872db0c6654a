"""Llama to and from Hugging Face folders: `config.json` beside `model.safetensors`.

Hugging Face keeps every layer's tensors apart and its kernels (out, in); ours are stacked over
layers and (in, out).
"""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import save_file

from experiments.files import replacing
from experiments.llama.attention import RopeScaling
from experiments.llama.model import Llama, LlamaConfig

# Ours: theirs.
ONE_TENSOR = {
    "embedding": "model.embed_tokens.weight",
    "final_norm/scale": "model.norm.weight",
    "head": "lm_head.weight",
}
ONE_TENSOR_A_LAYER = {
    "layers/attn/q": "self_attn.q_proj.weight",
    "layers/attn/k": "self_attn.k_proj.weight",
    "layers/attn/v": "self_attn.v_proj.weight",
    "layers/attn/o": "self_attn.o_proj.weight",
    "layers/mlp/gate": "mlp.gate_proj.weight",
    "layers/mlp/up": "mlp.up_proj.weight",
    "layers/mlp/down": "mlp.down_proj.weight",
    "layers/first_norm/scale": "input_layernorm.weight",
    "layers/second_norm/scale": "post_attention_layernorm.weight",
}
CONFIG = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "max_sequence_length": "max_position_embeddings",
    "rope_theta": "rope_theta",
    "rms_eps": "rms_norm_eps",
    "init_std": "initializer_range",
    "tie_embeddings": "tie_word_embeddings",
}


def save(model: Llama, folder: str | Path, **extra: Any) -> None:
    """Writes ``model`` so that ``transformers.LlamaForCausalLM.from_pretrained(folder)`` reads it.

    Other files of the folder, such as a tokenizer's, are left alone.

    Args:
        model: The model; its tensors are written in their own type.
        folder: Where to write; created if need be.
        extra: Further entries of ``config.json``, for example ``eos_token_id=2``.
    """
    folder = Path(folder)
    tensors = {}
    for key_path, array in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(model))):
        path = _joined(key_path)
        for name, view in _tensors(path, np.asarray(array)).items():
            tensors[name] = np.ascontiguousarray(view)
    with replacing(folder / "model.safetensors") as file:
        save_file(tensors, file, metadata={"format": "pt"})
    with replacing(folder / "config.json") as file:
        file.write_text(json.dumps(_to_hugging_face(model.config) | extra, indent=2) + "\n")


def load(folder: str | Path, **overrides: Any) -> Llama:
    """Reads a Hugging Face LLaMA whose weights are in safetensors, in one file or sharded.

    Args:
        folder: Holds ``config.json`` and ``model.safetensors`` or its ``.index.json`` with shards.
        overrides: Fields of ``LlamaConfig`` that the folder does not decide, such as ``dtype``,
            ``param_dtype`` (both float32 unless given) and ``remat``.

    Raises:
        FileNotFoundError: If the folder lacks the config or the weights.
        ValueError: If the architecture is not LLaMA's as in ``model.py``, or if tensors are
            missing, left over or of the wrong shape.
    """
    folder = Path(folder)
    config = load_config(folder, **overrides)
    files = _files_of_tensors(folder)

    def read(key_path: Any, abstract: jax.ShapeDtypeStruct) -> jax.Array:
        array = np.empty(abstract.shape, abstract.dtype)
        for name, view in _tensors(_joined(key_path), array).items():
            if name not in files:
                raise ValueError(f"{folder}: tensor {name} is missing")
            with safe_open(files.pop(name), framework="numpy") as file:
                tensor = file.get_tensor(name)
            if tensor.shape != view.shape:
                raise ValueError(
                    f"{folder}: {name} has shape {tensor.shape}, config.json asks for {view.shape}"
                )
            view[...] = tensor
        return jnp.asarray(array)

    # Shapes alone: the weights that an initialization would draw are about to be replaced.
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(0))))
    params = jax.tree_util.tree_map_with_path(read, nnx.to_pure_dict(state))
    # Some writers add the rotary frequencies, or the tied head a second time.
    redundant = ("rotary_emb.inv_freq", "lm_head.weight")
    if unused := sorted(name for name in files if not name.endswith(redundant)):
        raise ValueError(f"{folder}: {len(unused)} tensors have no place here, first {unused[0]}")
    return nnx.merge(graphdef, params)


def load_config(folder: str | Path, **overrides: Any) -> LlamaConfig:
    """The architecture in a folder's ``config.json``; ``overrides`` are as for :func:`load`."""
    return LlamaConfig(**(_from_hugging_face(Path(folder) / "config.json") | overrides))


def fingerprint(folder: str | Path) -> str:
    """Hexadecimal digest of a folder's weights: of each file's size, first and last mebibyte."""
    digest = hashlib.sha256()
    for path in sorted(set(_files_of_tensors(Path(folder)).values())):
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest.update(f"{path.name} {size}".encode())
            for start in (0, max(0, size - 2**20)):
                file.seek(start)
                digest.update(file.read(2**20))
    return digest.hexdigest()


def _tensors(path: str, array: np.ndarray) -> dict[str, np.ndarray]:
    """Views of one of our parameters as the tensors that Hugging Face makes of it."""
    if path == "embedding":
        return {ONE_TENSOR[path]: array}  # the one matrix that both lay out alike
    if path in ONE_TENSOR:
        return {ONE_TENSOR[path]: array.T}
    name = ONE_TENSOR_A_LAYER[path]
    return {f"model.layers.{number}.{name}": layer.T for number, layer in enumerate(array)}


def _joined(key_path: Any) -> str:
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def _files_of_tensors(folder: Path) -> dict[str, Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        with safe_open(single, framework="numpy") as file:
            return dict.fromkeys(file.keys(), single)
    if index.is_file():
        shards = json.loads(index.read_text())["weight_map"]
        return {name: folder / shard for name, shard in shards.items()}
    raise FileNotFoundError(
        f"{folder} has neither {single.name} nor {index.name}; save weights of another format as "
        "safetensors first"
    )


def _to_hugging_face(config: LlamaConfig) -> dict[str, Any]:
    scaling = dataclasses.asdict(config.rope_scaling) if config.rope_scaling else None
    return {theirs: getattr(config, ours) for ours, theirs in CONFIG.items()} | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        # transformers 5 looks here; 4 reads rope_theta, rope_scaling and torch_dtype.
        "rope_parameters": {"rope_theta": config.rope_theta}
        | (scaling or {"rope_type": "default"}),
        "rope_scaling": scaling,
        "dtype": str(config.param_dtype),
        "torch_dtype": str(config.param_dtype),
        # Left out, they would be taken for those of Meta's tokenizer.
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _from_hugging_face(file: Path) -> dict[str, Any]:
    content = json.loads(file.read_text())
    rope = content.get("rope_parameters") or content.get("rope_scaling") or {}
    content |= {"rope_type": rope.get("type", "default")} | rope
    ours = {
        name: content[theirs] for name, theirs in CONFIG.items() if content.get(theirs) is not None
    }
    required = [f.name for f in dataclasses.fields(LlamaConfig) if f.default is dataclasses.MISSING]
    if missing := [CONFIG[name] for name in required if name not in ours]:
        raise ValueError(f"{file}: missing {', '.join(missing)}")
    supported = {
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "head_dim": ours["hidden_size"] // ours["num_heads"],
    }
    for name, value in supported.items():
        if content.get(name) not in (None, value):
            raise ValueError(f"{file}: {name} is {content[name]!r}, only {value!r} is supported")
    if content["rope_type"] != "default":
        known = [field.name for field in dataclasses.fields(RopeScaling)]
        try:
            scaling = RopeScaling(**{name: content[name] for name in known if name in content})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file}: {error}") from error
        ours["rope_scaling"] = scaling
    return ours

"""Llama to and from Hugging Face folders: `config.json` beside `model.safetensors`.

Hugging Face keeps every layer's tensors apart and its kernels (out, in); ours are stacked over
layers and (in, out).
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from experiments import safetensors_folder
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
    params = nnx.to_pure_dict(nnx.state(model))
    safetensors_folder.write(folder, params, _tensors, _to_hugging_face(model.config) | extra)


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
    config = load_config(folder, **overrides)
    # Shapes alone: the weights that an initialization would draw are about to be replaced.
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(0))))
    # Some writers add the rotary frequencies, or the tied head a second time.
    redundant = r".*rotary_emb\.inv_freq|lm_head\.weight"
    params = safetensors_folder.read(folder, nnx.to_pure_dict(state), _tensors, redundant)
    return nnx.merge(graphdef, params)


def load_config(folder: str | Path, **overrides: Any) -> LlamaConfig:
    """The architecture in a folder's ``config.json``; ``overrides`` are as for :func:`load`."""
    return LlamaConfig(**(_from_hugging_face(folder) | overrides))


def _tensors(path: str, array: np.ndarray) -> dict[str, np.ndarray]:
    """Views of one of our parameters as the tensors that Hugging Face makes of it."""
    if path == "embedding":
        return {ONE_TENSOR[path]: array}  # the one matrix that both lay out alike
    if path in ONE_TENSOR:
        return {ONE_TENSOR[path]: array.T}
    name = ONE_TENSOR_A_LAYER[path]
    return {f"model.layers.{number}.{name}": layer.T for number, layer in enumerate(array)}


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


def _from_hugging_face(folder: str | Path) -> dict[str, Any]:
    content = safetensors_folder.read_config(folder)
    rope = content.get("rope_parameters") or content.get("rope_scaling") or {}
    content |= {"rope_type": rope.get("type", "default")} | rope
    required = [f.name for f in dataclasses.fields(LlamaConfig) if f.default is dataclasses.MISSING]
    safetensors_folder.require(folder, content, {"model_type": "llama"})
    ours = safetensors_folder.renamed(folder, content, CONFIG, required)
    supported = {
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "head_dim": ours["hidden_size"] // ours["num_heads"],
    }
    safetensors_folder.require(folder, content, supported)
    if content["rope_type"] != "default":
        known = [field.name for field in dataclasses.fields(RopeScaling)]
        try:
            scaling = RopeScaling(**{name: content[name] for name in known if name in content})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{Path(folder) / 'config.json'}: {error}") from error
        ours["rope_scaling"] = scaling
    return ours

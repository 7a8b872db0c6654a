"""A LLaMA out of a GGUF file, as a Hugging Face folder: `llama.cpp`'s format, opened once.

GGUF stores tensors under names of its own, in blocks of few bits. It also orders the rows of query
and key kernels so that neighbors are rotated together; Hugging Face rotates channel c with channel
c + C/2. The tokenizer is inside too.
"""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tokenizers
from safetensors.numpy import save_file

from experiments.files import replacing

ONE_TENSOR = {
    "token_embd": "model.embed_tokens.weight",
    "output_norm": "model.norm.weight",
    "output": "lm_head.weight",
}
ONE_TENSOR_A_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONFIG = {
    "llama.vocab_size": "vocab_size",
    "llama.embedding_length": "hidden_size",
    "llama.feed_forward_length": "intermediate_size",
    "llama.block_count": "num_hidden_layers",
    "llama.attention.head_count": "num_attention_heads",
    "llama.attention.head_count_kv": "num_key_value_heads",
    "llama.context_length": "max_position_embeddings",
    "llama.attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "llama.rope.freq_base": "rope_theta",
}
# How text is cut before byte pairs are merged, by GGUF's name for it.
PRE_TOKENIZERS = {
    "smollm": lambda: tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    ),
    "gpt-2": lambda: tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
}
CONTROL = 3  # the type of a token that text never contains


def to_hugging_face(file: Path, folder: Path) -> None:
    """Writes ``config.json``, ``model.safetensors`` and the tokenizer of a GGUF file to a folder.

    Weights are decoded to float32, in which nothing of what the file stores is lost.

    Raises:
        ValueError: If the architecture is not LLaMA's, a tensor is unknown, or the tokenizer is of
            a kind that is not read here.
    """
    reader = gguf.GGUFReader(file)
    values = {name: field.contents() for name, field in reader.fields.items()}
    if (kind := values.get("general.architecture")) != "llama":
        raise ValueError(f"{file}: architecture is {kind!r}, only 'llama' is supported")
    config = {theirs: values[name] for name, theirs in CONFIG.items() if name in values}
    tensors = {}
    for tensor in reader.tensors:
        name, weight = _tensor(tensor.name, tensor.data, tensor.tensor_type, config)
        tensors[name] = weight
    config |= {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "rope_parameters": {"rope_type": "default", "rope_theta": config["rope_theta"]},
        "dtype": "float32",
        "torch_dtype": "float32",
        "bos_token_id": values.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": values.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": values.get("tokenizer.ggml.padding_token_id"),
    }
    # float32 in the file: 1e-5 comes out as 9.999999747e-06.
    config["rms_norm_eps"] = float(np.format_float_positional(np.float32(config["rms_norm_eps"])))
    folder.mkdir(parents=True, exist_ok=True)
    _save_tokenizer(file, values, folder)
    with replacing(folder / "model.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    with replacing(folder / "config.json") as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n")


def _tensor(name: str, data: Any, kind: Any, config: dict[str, Any]) -> tuple[str, np.ndarray]:
    """One of the file's tensors: Hugging Face's name for it, and its values."""
    weight = np.ascontiguousarray(gguf.quants.dequantize(data, kind), np.float32)
    first, *rest = name.removesuffix(".weight").split(".")
    if not rest and first in ONE_TENSOR:
        return ONE_TENSOR[first], weight
    if first == "blk" and len(rest) == 2 and rest[1] in ONE_TENSOR_A_LAYER:
        number, part = rest
        heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(part)
        if heads:
            weight = unpermute(weight, config[heads])
        return f"model.layers.{number}.{ONE_TENSOR_A_LAYER[part]}.weight", weight
    raise ValueError(f"tensor {name} has no place in a LLaMA")


def unpermute(kernel: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key kernel [heads x C, in], from neighbors to halves rotated together."""
    channels = len(kernel) // heads
    pairs = kernel.reshape(heads, channels // 2, 2, -1)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(kernel.shape))


def _save_tokenizer(file: Path, values: dict[str, Any], folder: Path) -> None:
    kind, cut = (values.get(f"tokenizer.ggml.{name}") for name in ("model", "pre"))
    if kind != "gpt2" or cut not in PRE_TOKENIZERS:
        raise ValueError(
            f"{file}: its tokenizer is {kind!r}, {cut!r}; only byte pairs ('gpt2') cut as in "
            f"{sorted(PRE_TOKENIZERS)} are read"
        )
    tokens = values["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in values["tokenizer.ggml.merges"]]
    model = tokenizers.models.BPE({token: i for i, token in enumerate(tokens)}, merges)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[cut]()
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    types = values.get("tokenizer.ggml.token_type", [])
    control = [token for token, type_ in zip(tokens, types, strict=False) if type_ == CONTROL]
    tokenizer.add_special_tokens(control)
    with replacing(folder / "tokenizer.json") as temporary:
        tokenizer.save(str(temporary))
    named = {
        f"{name}_token": tokens[values[key]]
        for name, part in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if (key := f"tokenizer.ggml.{part}_token_id") in values
    }
    settings = named | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": values.get("tokenizer.chat_template"),
        "add_bos_token": bool(values.get("tokenizer.ggml.add_bos_token")),
        "model_max_length": values["llama.context_length"],
        "clean_up_tokenization_spaces": False,
    }
    with replacing(folder / "tokenizer_config.json") as temporary:
        temporary.write_text(json.dumps(settings, indent=2) + "\n")

"""Classifier to and from Hugging Face folders of ``BertForSequenceClassification``."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from experiments import safetensors_folder
from experiments.encoder.model import Classifier, EncoderConfig

# Ours: theirs; a kernel's bias stands beside it.
_EMBEDDING = {
    "embedding/tokens": "embeddings.word_embeddings.weight",
    "embedding/positions": "embeddings.position_embeddings.weight",
    "embedding/segments": "embeddings.token_type_embeddings.weight",
}
_NORMS = {
    "embedding/norm": "embeddings.LayerNorm",
    "layers/first_norm": "attention.output.LayerNorm",
    "layers/second_norm": "output.LayerNorm",
}
_KERNELS = {
    "layers/attn/q": "attention.self.query",
    "layers/attn/k": "attention.self.key",
    "layers/attn/v": "attention.self.value",
    "layers/attn/o": "attention.output.dense",
    "layers/mlp/up": "intermediate.dense",
    "layers/mlp/down": "output.dense",
    "classifier/pooler": "pooler.dense",
    "classifier/out": "classifier",
}
CONFIG = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "max_sequence_length": "max_position_embeddings",
    "num_segments": "type_vocab_size",
    "norm_eps": "layer_norm_eps",
    "init_std": "initializer_range",
}


def save(model: Classifier, folder: str | Path) -> None:
    """Writes ``model`` so that ``transformers.BertForSequenceClassification`` reads it."""
    params = nnx.to_pure_dict(nnx.state(model))
    safetensors_folder.write(folder, params, _of_classifier, _to_hugging_face(model.config))


def load(
    folder: str | Path, labels: tuple[str, ...], seed: int = 0, **overrides: Any
) -> Classifier:
    """Reads a BERT, bare or with a classifier, whose weights are in safetensors.

    Args:
        folder: Holds ``config.json`` and the weights.
        labels: The classes. A classifier of the same ones is read; any other head is drawn anew.
        seed: Of what is drawn: the classifier, and a pooler where the folder has none.
        overrides: As for the LLaMA's.

    Raises:
        FileNotFoundError: If the folder lacks the config or the weights.
        ValueError: If the architecture is another, or tensors are missing or left over.
    """
    config = load_config(folder, labels, **overrides)
    model = Classifier(config, rngs=nnx.Rngs(seed))
    graphdef, state = nnx.split(model)
    params = nnx.to_pure_dict(state)
    there = set(safetensors_folder.files_of_tensors(folder))
    read = {name: part for name, part in params.items() if name != "classifier"}
    trained = _labels(safetensors_folder.read_config(folder)) == labels
    wanted = ["pooler", "pooler_bias"] if any("pooler." in name for name in there) else []
    wanted += ["out", "out_bias"] if trained and "classifier.weight" in there else []
    if wanted:
        read["classifier"] = {name: params["classifier"][name] for name in wanted}
    names = _of_classifier if any(name.startswith("bert.") for name in there) else _of_encoder
    # Numbers of positions, and the head of a masked language model or of another classifier.
    redundant = r".*\.position_ids|cls\..*|classifier\..*"
    found = safetensors_folder.read(folder, read, names, redundant)
    head = params["classifier"] | found.pop("classifier", {})
    return nnx.merge(graphdef, found | {"classifier": head})


def load_config(folder: str | Path, labels: tuple[str, ...], **overrides: Any) -> EncoderConfig:
    """The architecture in a folder's ``config.json``, with these classes."""
    content = safetensors_folder.read_config(folder)
    supported = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "is_decoder": False,
    }
    safetensors_folder.require(folder, content, supported)
    fields = dataclasses.fields(EncoderConfig)
    required = [field.name for field in fields if field.default is dataclasses.MISSING]
    ours = safetensors_folder.renamed(folder, content, CONFIG, required)
    return EncoderConfig(**(ours | {"labels": labels} | overrides))


def _labels(content: dict[str, Any]) -> tuple[str, ...]:
    return tuple(content.get("id2label", {}).values())


def _to_hugging_face(config: EncoderConfig) -> dict[str, Any]:
    return {theirs: getattr(config, ours) for ours, theirs in CONFIG.items()} | {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "id2label": {str(number): label for number, label in enumerate(config.labels)},
        "label2id": {label: number for number, label in enumerate(config.labels)},
        "dtype": str(config.param_dtype),
        "torch_dtype": str(config.param_dtype),
    }


def _of_classifier(path: str, array: np.ndarray) -> dict[str, np.ndarray]:
    """Names in a classifier's file, where all but the classifier stands below ``bert``."""
    return {
        name if name.startswith("classifier.") else f"bert.{name}": view
        for name, view in _of_encoder(path, array).items()
    }


def _of_encoder(path: str, array: np.ndarray) -> dict[str, np.ndarray]:
    """Views of one of our parameters as the tensors that Hugging Face makes of it."""
    if path in _EMBEDDING:
        return {_EMBEDDING[path]: array}  # matrices that both lay out alike
    owner, _, last = path.rpartition("/")
    if owner in _NORMS:
        name = f"{_NORMS[owner]}.{'weight' if last == 'scale' else 'bias'}"
    elif path.endswith("_bias"):
        name = f"{_KERNELS[path.removesuffix('_bias')]}.bias"
    else:
        name = f"{_KERNELS[path]}.weight"
    if not path.startswith("layers/"):
        return {name: array.T}
    return {f"encoder.layer.{number}.{name}": layer.T for number, layer in enumerate(array)}

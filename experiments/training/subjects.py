"""What a fine-tuning run is about: a trained model of some kind, and a task in its tokens."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
from flax import nnx

from experiments import safetensors_folder
from experiments.llama import checkpoints
from experiments.text.answer_batches import Rows
from experiments.text.examples import Example, TaskData
from experiments.training.answering import Answering
from experiments.training.classifying import Classification
from experiments.training.finetune_config import FinetuneConfig
from experiments.training.scoring import Score

Batch = dict[str, jax.Array]


class Subject(Protocol):
    """All that differs between a model that writes answers and one that sorts texts.

    Attributes:
        architecture: The model's config.
        task: The examples.
        rows: Those to learn from.
        seq_len: Tokens in a row.
    """

    architecture: Any
    task: TaskData
    rows: Rows
    seq_len: int

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of examples, tokenizer and weights: what makes a run another one."""

    def drawn(self) -> nnx.Module:
        """The model with weights drawn, for its shapes."""

    def read(self, seed: int) -> nnx.Module:
        """The trained model; what is new in it is drawn from the seed."""

    def features(self, model: Any, batch: Batch) -> jax.Array:
        """The residual stream after the last layer."""

    def loss_of(self, model: Any, features: jax.Array, batch: Batch) -> jax.Array:
        """The mean loss of a batch, given its features."""

    def scorer(
        self, graphdef: nnx.GraphDef, examples: Sequence[Example], batch_size: int
    ) -> Callable[..., Score]:
        """A function of weights, as ``step.split`` gives them, that scores them on examples."""

    def export(self, model: Any, folder: Path) -> None:
        """Writes a Hugging Face folder."""


# The model_type of a config.json, and what is made of such a model.
KINDS: dict[str, Callable[[FinetuneConfig, Path], Subject]] = {
    "llama": Answering,
    "bert": Classification,
}


def subject_of(config: FinetuneConfig) -> Subject:
    """The model and task that a run names.

    Raises:
        FileNotFoundError: If there is no such model, or it lacks a part.
        ValueError: If the model is of another kind, or an example or setting is impossible.
    """
    source = checkpoints.resolve(config.model)
    kind = safetensors_folder.read_config(source).get("model_type")
    if kind not in KINDS:
        raise ValueError(
            f"{source / 'config.json'}: model_type is {kind!r}, only {' and '.join(KINDS)} are "
            "supported"
        )
    return KINDS[kind](config, source)

"""Fine-tuning an encoder to sort texts into the classes of a task."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments import safetensors_folder
from experiments.encoder import huggingface
from experiments.encoder.model import Classifier
from experiments.text import model_tokenizer
from experiments.text.answer_batches import Rows, fitting_length
from experiments.text.examples import Example
from experiments.text.label_batches import EncoderTokenizer, LabelRows, labels_of
from experiments.text.tasks import load_task
from experiments.training.finetune_config import FinetuneConfig
from experiments.training.scoring import Proportion, Score
from experiments.training.step import merge

Batch = dict[str, jax.Array]


class Classification:
    """An encoder, and a task's examples in its tokens; see ``experiments.training.subjects``.

    Raises:
        ValueError: If the task's answers are no classes, or a setting is one of models that write.
    """

    def __init__(self, config: FinetuneConfig, source: Path):
        for flag in ("layerwise", "pack", "generate"):
            if getattr(config, flag):
                raise ValueError(f"--{flag} is for models that write; {source.name} is an encoder")
        self.source = source
        self._numerics: Any = {
            "dtype": config.dtype, "param_dtype": config.dtype, "remat": config.remat
        }  # fmt: skip
        self.task = load_task(config.task, _no_chats)
        self.labels = labels_of([*self.task.train, *self.task.test])
        self.architecture = huggingface.load_config(source, self.labels, **self._numerics)
        longest = config.seq_len or self.architecture.max_sequence_length
        if longest > self.architecture.max_sequence_length:
            raise ValueError(
                f"--seq-len {longest} is above the model's "
                f"{self.architecture.max_sequence_length} positions"
            )
        self.tokenizer = EncoderTokenizer(source, longest)
        if self.tokenizer.vocab_size > self.architecture.vocab_size:
            raise ValueError(
                f"{source}: the tokenizer has {self.tokenizer.vocab_size} ids, the model "
                f"{self.architecture.vocab_size}"
            )
        texts, cut = self.tokenizer.encode(self.task.train)
        if cut:
            print(
                f"{cut} of {len(texts)} texts are longer than {longest} tokens: they lose their end"
            )
        self.seq_len = fitting_length([len(ids) + 1 for ids in texts], longest)
        self.rows: Rows = LabelRows(texts, self.task.train, self.seq_len)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of examples, tokenizer and weights."""
        return {
            "task": self.task.fingerprint,
            "tokenizer": self.tokenizer.fingerprint,
            "weights": safetensors_folder.fingerprint(self.source),
        }

    def drawn(self) -> Classifier:
        """The model with weights drawn."""
        return Classifier(self.architecture, rngs=nnx.Rngs(0))

    def read(self, seed: int) -> Classifier:
        """The trained encoder and a head drawn from the seed."""
        return huggingface.load(self.source, self.labels, seed, **self._numerics)

    def features(self, model: Any, batch: Batch) -> jax.Array:
        """The residual stream after the last layer."""
        return model.hidden(batch["tokens"], batch["lengths"])

    def loss_of(self, model: Any, features: jax.Array, batch: Batch) -> jax.Array:
        """Mean nats of the right labels."""
        logits = model.classifier(features)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]))

    def scorer(
        self, graphdef: nnx.GraphDef, examples: Sequence[Example], batch_size: int
    ) -> Callable[..., Score]:
        """A function that scores weights on these examples, cut like those learned from."""
        texts, _ = self.tokenizer.encode(examples)
        rows = LabelRows([ids[: self.seq_len] for ids in texts], examples, self.seq_len)

        @jax.jit
        def logits_of(params: Any, frozen: Any, batch: Batch) -> jax.Array:
            model: Any = merge(graphdef, params, frozen)
            return model(batch["tokens"], batch["lengths"])

        def score(params: Any, frozen: Any = ()) -> Score:
            waiting = []
            for start in range(0, len(rows), batch_size):
                # The last batch is filled up, so that one program does for all.
                indices = np.arange(start, start + batch_size) % len(rows)
                waiting.append(logits_of(params, frozen, rows.take(indices)))
            nats = -jax.nn.log_softmax(jnp.concatenate(waiting)[: len(rows)])
            loss = float(jnp.mean(nats[jnp.arange(len(rows)), rows.labels]))
            right = int(jnp.sum(jnp.argmin(nats, 1) == rows.labels))
            return Score(loss, Proportion(right, len(rows)), None)

        return score

    def export(self, model: Any, folder: Path) -> None:
        """Writes a folder for ``transformers``, tokenizer included."""
        huggingface.save(model, folder)
        model_tokenizer.copy_files(self.source, folder)


def _no_chats(messages: Any, answer_next: bool) -> str:  # noqa: ARG001
    raise ValueError("an encoder reads no chats: give text and label")

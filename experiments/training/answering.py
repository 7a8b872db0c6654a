"""Fine-tuning a LLaMA to write the answers of a task."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from experiments import safetensors_folder
from experiments.llama import huggingface
from experiments.llama.answers import features, loss_of
from experiments.llama.generate import generate
from experiments.llama.model import Llama
from experiments.text.answer_batches import AnswerRows, Rows, encode, fitting_length
from experiments.text.examples import Example
from experiments.text.model_tokenizer import ModelTokenizer
from experiments.text.tasks import load_task
from experiments.training.finetune_config import FinetuneConfig
from experiments.training.scoring import Proportion, Scorer

LONGEST = 512  # tokens predicted in a row, unless --seq-len says otherwise

Batch = dict[str, jax.Array]


class Answering:
    """A LLaMA, and a task's examples in its tokens; see ``experiments.training.subjects``.

    Raises:
        ValueError: If the tokenizer is another model's, or an example does not fit.
    """

    def __init__(self, config: FinetuneConfig, source: Path):
        self.source = source
        self._numerics: Any = {
            "dtype": config.dtype, "param_dtype": config.dtype, "remat": config.remat
        }  # fmt: skip
        self.architecture = huggingface.load_config(source, **self._numerics)
        self.tokenizer = ModelTokenizer(source)
        if self.tokenizer.vocab_size > self.architecture.vocab_size:
            raise ValueError(
                f"{source}: the tokenizer has {self.tokenizer.vocab_size} ids, the model "
                f"{self.architecture.vocab_size}"
            )
        self.task = load_task(config.task, self.tokenizer.render)
        most = config.seq_len or LONGEST
        context = self.architecture.max_sequence_length
        if config.seq_len and most > context:
            raise ValueError(f"--seq-len {most} is above the model's context of {context} tokens")
        most = min(most, context)
        texts, cut = encode(self.task.train, self.tokenizer, most)
        if cut:
            print(
                f"{cut} of {len(texts)} examples are longer than {most} tokens: they lose their "
                "start"
            )
        lengths = [len(text.ids) for text in texts]
        self.seq_len = most if config.pack else fitting_length(lengths, most)
        self.rows: Rows = AnswerRows(texts, self.seq_len, config.pack)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of examples, tokenizer and weights."""
        return {
            "task": self.task.fingerprint,
            "tokenizer": self.tokenizer.fingerprint,
            "weights": safetensors_folder.fingerprint(self.source),
        }

    def drawn(self) -> Llama:
        """The model with weights drawn."""
        return Llama(self.architecture, rngs=nnx.Rngs(0))

    def read(self, seed: int) -> Llama:  # noqa: ARG002  (nothing of it is drawn)
        """The trained model."""
        return huggingface.load(self.source, **self._numerics)

    def features(self, model: Any, batch: Batch) -> jax.Array:
        """The residual stream after the last layer."""
        return features(model, batch)

    def loss_of(self, model: Any, features: jax.Array, batch: Batch) -> jax.Array:
        """Mean nats per token of the answers."""
        return loss_of(model, features, batch)

    def scorer(
        self, graphdef: nnx.GraphDef, examples: Sequence[Example], batch_size: int
    ) -> Scorer:
        """A function that scores weights on these examples."""
        return Scorer(graphdef, examples, self.tokenizer, self.seq_len, batch_size)

    def export(self, model: Any, folder: Path) -> None:
        """Writes a folder for ``transformers``, tokenizer included."""
        special = {"eos_token_id": self.tokenizer.eos_id}
        if self.tokenizer.bos:
            special["bos_token_id"] = self.tokenizer.bos[0]
        huggingface.save(model, folder, **special)
        self.tokenizer.copy_files(folder)

    def generated(self, model: Llama, examples: Sequence[Example], batch_size: int) -> Proportion:
        """How often the model, left to write greedily, writes the right answer and ends."""
        answers = [example.parts[-1].text for example in examples]
        right = 0
        for start in range(0, len(examples), batch_size):
            some = slice(start, start + batch_size)
            asked = self.tokenizer.encode([example.prompt for example in examples[some]])
            prompts = [self.tokenizer.bos + ids for ids in asked]
            longest = max(len(ids) for ids in self.tokenizer.encode(answers[some])) + 1
            written = generate(model, prompts, longest, self.tokenizer.eos_id)
            right += sum(
                self.tokenizer.decode(ids).strip() == answer.strip()
                for ids, answer in zip(written, answers[some], strict=True)
            )
        return Proportion(right, len(examples))

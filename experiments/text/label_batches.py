"""Examples with one label each as rows of an encoder's tokens."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.files import sha256_of_file
from experiments.text.answer_batches import Batch, Rows
from experiments.text.examples import Example
from experiments.text.model_tokenizer import read_tokenizer


def labels_of(examples: Sequence[Example]) -> tuple[str, ...]:
    """The answers among which every example chooses.

    Raises:
        ValueError: If not all choose among the same ones.
    """
    choices = examples[0].choices
    if any(example.choices != choices for example in examples) or not choices:
        raise ValueError(
            "an encoder sorts texts into classes: every example has to choose among the same "
            "answers, as with sst2, trec, boolq and your own text and label"
        )
    return tuple(choice.strip() for choice in choices)


class EncoderTokenizer:
    """The ``tokenizer.json`` of an encoder, which marks where a text begins and ends itself.

    Args:
        folder: Of the checkpoint.
        longest: Tokens after which a text is cut.

    Raises:
        FileNotFoundError: If there is none.
    """

    def __init__(self, folder: Path, longest: int):
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise FileNotFoundError(f"{folder} has no tokenizer: expected tokenizer.json")
        self._tokenizer = read_tokenizer(file)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(longest)
        self.vocab_size = self._tokenizer.get_vocab_size()
        self.fingerprint = sha256_of_file(file)

    def encode(self, examples: Sequence[Example]) -> tuple[list[list[int]], int]:
        """Token ids of what stands before each answer, and how many of these texts were cut."""
        found = self._tokenizer.encode_batch([example.prompt for example in examples])
        return [encoding.ids for encoding in found], sum(bool(e.overflowing) for e in found)


class LabelRows(Rows):
    """Texts, padded to one length, and the number of the right label of each.

    Args:
        texts: In tokens.
        examples: What they are of.
        length: Of a row.
    """

    def __init__(self, texts: Sequence[list[int]], examples: Sequence[Example], length: int):
        self.tokens = np.zeros((len(texts), length), np.int32)
        for row, ids in zip(self.tokens, texts, strict=True):
            row[: len(ids)] = ids
        self.lengths = np.array([len(ids) for ids in texts], np.int32)
        self.labels = np.array([example.gold for example in examples], np.int32)

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, indices: np.ndarray) -> Batch:
        """The rows of some indices, for ``experiments.training.classifying``."""
        return {
            "tokens": self.tokens[indices],
            "lengths": self.lengths[indices],
            "labels": self.labels[indices],
        }

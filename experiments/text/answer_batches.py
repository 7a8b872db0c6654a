"""Examples as batches of token rows: padded or packed, each with where its answers are."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import grain
import numpy as np

from experiments.text.examples import Example
from experiments.text.model_tokenizer import ModelTokenizer

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One example in tokens.

    Attributes:
        ids: Token ids.
        learned: Of each, whether the loss counts its prediction.
    """

    ids: np.ndarray
    learned: np.ndarray


def encode(
    examples: Sequence[Example], tokenizer: ModelTokenizer, seq_len: int
) -> tuple[list[Encoded], int]:
    """Examples in tokens, and how many were cut.

    A text too long for ``seq_len`` predictions loses its beginning.

    Raises:
        ValueError: If that would reach into what is learned; names the example.
    """
    texts = [part.text for example in examples for part in example.parts]
    ids = iter(tokenizer.encode(texts))
    rows, cut = [], 0
    for number, example in enumerate(examples):
        tokens, learned = list(tokenizer.bos), [False] * len(tokenizer.bos)
        for part in example.parts:
            piece = next(ids)
            tokens += piece
            learned += [part.learned] * len(piece)
        if example.ends:
            tokens.append(tokenizer.eos_id)
            learned.append(True)
        excess = len(tokens) - (seq_len + 1)
        if excess > 0:
            # The first token of what is left is not predicted.
            if any(learned[: excess + 1]):
                raise ValueError(
                    f"example {number + 1} of {len(examples)}: an answer of {sum(learned)} tokens "
                    f"does not fit behind a token of prompt into --seq-len {seq_len}: "
                    f"{example.parts[-1].text[:60]!r}"
                )
            tokens, learned, cut = tokens[excess:], learned[excess:], cut + 1
        learned[0] = False
        if not any(learned):
            raise ValueError(f"example {number + 1} has no token to learn from")
        rows.append(Encoded(np.array(tokens, np.int32), np.array(learned)))
    return rows, cut


def fitting_length(lengths: Sequence[int], most: int) -> int:
    """Predictions for the longest of some texts, rounded up to 16, and at most ``most``."""
    return min(most, -(-(max(lengths) - 1) // 16) * 16)


def pack(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Which texts share a row of ``size`` tokens: long ones first, each where it fits closest.

    Example:
        >>> pack([3, 5, 2, 4], size=7)
        [[1, 2], [3, 0]]
    """
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(size + 1)]  # rows by the room they have left
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        room = next((r for r in range(length, size + 1) if with_room[r]), None)
        if room is None:
            row, room = len(rows), size
            rows.append([])
        else:
            row = with_room[room].pop(0)
        rows[row].append(index)
        with_room[room - length].append(row)
    return rows


class Rows(Protocol):
    """Rows of tokens that can be taken by their numbers, in batches."""

    def __len__(self) -> int: ...

    def take(self, indices: np.ndarray) -> Batch:
        """The rows of some indices."""

    def batches(self, batch_size: int, seed: int) -> grain.IterDataset:
        """Endless batches in a new order every epoch."""
        return (
            grain.MapDataset.range(len(self))
            .shuffle(seed)
            .repeat(10**6)  # without a number, batches of one are too many for Python to count
            .batch(batch_size)
            .map(self.take)
            .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
        )


class AnswerRows(Rows):
    """Rows of tokens, and where in each the answers are.

    Args:
        texts: In tokens, each of at most ``seq_len + 1``.
        seq_len: Predictions in a row.
        packed: Whether several texts share a row.
    """

    def __init__(self, texts: Sequence[Encoded], seq_len: int, packed: bool = False):
        size = seq_len + 1
        lengths = [len(text.ids) for text in texts]
        members = pack(lengths, size) if packed else [[i] for i in range(len(texts))]
        count = len(members)
        self.tokens = np.zeros((count, size), np.int32)
        self.segments = np.zeros((count, size), np.int32) if packed else None
        targets = np.zeros((count, size), bool)
        for row, indices in enumerate(members):
            start = 0
            for number, index in enumerate(indices, 1):
                end = start + lengths[index]
                self.tokens[row, start:end] = texts[index].ids
                targets[row, start:end] = texts[index].learned
                if self.segments is not None:
                    self.segments[row, start:end] = number
                start = end
        # Of the logits only those that predict an answer are ever computed.
        most = int(targets.sum(1).max())
        self.places = np.zeros((count, most), np.int32)
        self.counted = np.zeros((count, most), np.float32)
        for row, learned in enumerate(targets):
            where = np.flatnonzero(learned) - 1
            self.places[row, : len(where)] = where
            self.counted[row, : len(where)] = 1

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, indices: np.ndarray) -> Batch:
        """The rows of some indices, as ``experiments.llama.answers`` takes them."""
        counted = self.counted[indices]
        batch = {
            "tokens": self.tokens[indices],
            "places": self.places[indices],
            "weights": counted / counted.mean(),
        }
        if self.segments is not None:
            batch["segments"] = self.segments[indices]
        return batch

"""Batches of packed token windows: the same for everyone, resumable at any batch."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Protocol

import grain
import numpy as np

from experiments.files import cache_directory
from experiments.text.corpus import load_corpus
from experiments.text.packing import Windows, flatten, token_folder
from experiments.text.streaming import C4, Stream, first_texts
from experiments.text.tokenizer import Tokenizer, load_tokenizer

Batch = dict[str, np.ndarray]

# Of C4's documents, those that a "bpe-N" tokenizer learns from.
_C4_TOKENIZER_CHARACTERS = 8_000_000
# Text per wanted validation token; a token of English rarely takes more.
_C4_CHARACTERS_PER_TOKEN = 8


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What to train on.

    Attributes:
        dataset: ``"registry"``, ``"registry_full"`` or a folder of text, see
            :func:`experiments.corpus.load_corpus`; ``"c4"`` streams C4 from the hub, and
            ``"c4:FOLDER"`` from a folder that is laid out like it.
        tokenizer: ``"mistral"``, ``"bpe-N"`` or ``"bytes"``, see
            :func:`experiments.tokenizer.load_tokenizer`.
        seq_len: Tokens predicted in each window.
        cache_dir: Where downloads and tokens are kept; by default ``$FIRA_JAX_CACHE``, or
            ``~/.cache/fira_jax``.
        validation_tokens: At most so many tokens are predicted in one validation.
    """

    dataset: str = "registry"
    tokenizer: str = "bpe-1024"
    seq_len: int = 256
    cache_dir: str | None = None
    validation_tokens: int = 131_072


class TrainSource(Protocol):
    """What training batches come from."""

    def batches(self, batch_size: int, seed: int, rows: slice = slice(None)) -> grain.IterDataset:
        """These rows of endless batches int32 ``[batch_size, seq_len + 1]``."""


@dataclasses.dataclass(frozen=True)
class TokenData:
    """Training and validation batches.

    Attributes:
        tokenizer: What makes the tokens.
        seq_len: Tokens predicted in each window.
        fingerprint: Hexadecimal digest of the corpus, the tokenizer and ``seq_len``. For C4 the
            corpus is taken by its name.
        bytes_per_token: UTF-8 bytes a token stands for, on average over the validation text.
            A loss in nats a token divided by it is in nats a byte, which is comparable between
            tokenizers.
        train_source: Where training batches come from.
        validation_windows: All windows of the validation text.
        validation_tokens: At most so many tokens are predicted in one validation.
    """

    tokenizer: Tokenizer
    seq_len: int
    fingerprint: str
    bytes_per_token: float
    train_source: TrainSource
    validation_windows: Windows
    validation_tokens: int

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.tokenizer.vocab_size

    def train(
        self,
        batch_size: int,
        seed: int,
        *,
        process_index: int = 0,
        process_count: int = 1,
        rows: slice | None = None,
    ) -> grain.DatasetIterator:
        """Endless batches ``{"tokens": int32 [rows, seq_len + 1]}``.

        Every epoch goes through all windows in a new order, which follows from ``seed``. The
        iterator's ``get_state()``, a value for JSON, and ``set_state()`` are exact.

        Args:
            batch_size: Windows of the global batch.
            seed: Seed of the order.
            process_index: Which of the processes this is. Each gets its consecutive rows of the
                global batch, which is the same for any number of processes.
            process_count: Number of processes; must divide ``batch_size``.
            rows: Instead of the last two, the rows of the global batch to read.
        """
        rows = rows or _rows_of_process(batch_size, process_index, process_count)
        batches = self.train_source.batches(batch_size, seed, rows)
        return iter(batches.map(lambda tokens: {"tokens": tokens}))

    def validation(
        self, batch_size: int, *, process_index: int = 0, process_count: int = 1
    ) -> list[Batch]:
        """The same full batches every time, from windows spread evenly over the validation text.

        Raises:
            ValueError: If there are fewer windows than a batch takes.
        """
        rows = _rows_of_process(batch_size, process_index, process_count)
        available = len(self.validation_windows)
        count = min(self.validation_tokens // self.seq_len, available)
        if count < batch_size:
            raise ValueError(
                f"validation needs batch_size={batch_size} windows of {self.seq_len} tokens, got "
                f"{count}: the text has {available}, validation_tokens={self.validation_tokens}"
            )
        spread = np.linspace(0, available - 1, count).round().astype(np.int64)
        batches = spread[: count - count % batch_size].reshape(-1, batch_size)
        return [{"tokens": self.validation_windows.take(indices[rows])} for indices in batches]


def load(config: DataConfig) -> TokenData:
    """Prepares a configuration's data; only the first call downloads and tokenizes.

    Raises:
        ValueError: If the text is too short for one window.
    """
    if config.seq_len < 1:
        raise ValueError(f"seq_len={config.seq_len}: expected at least 1")
    cache = cache_directory(config.cache_dir)
    if config.dataset == "c4" or config.dataset.startswith("c4:"):
        return _load_c4(config, config.dataset.removeprefix("c4").removeprefix(":") or C4, cache)

    corpus = load_corpus(config.dataset, cache)
    tokenizer = load_tokenizer(config.tokenizer, corpus.train, cache, corpus_sha256=corpus.sha256)
    folder = token_folder(corpus, tokenizer, cache)
    counts = json.loads((folder / "counts.json").read_text())
    windows = {
        split: Windows(np.load(folder / f"{split}.npy", mmap_mode="r"), config.seq_len)
        for split in ("train", "validation")
    }
    for split, cut in windows.items():
        if len(cut) == 0:
            raise ValueError(
                f"{config.dataset}: the {split} text has {len(cut.tokens)} tokens, expected at "
                f"least seq_len + 1 = {config.seq_len + 1}"
            )
    return TokenData(
        tokenizer=tokenizer,
        seq_len=config.seq_len,
        fingerprint=_digest(corpus.sha256, tokenizer.fingerprint, config.seq_len),
        bytes_per_token=counts["validation"]["bytes"] / counts["validation"]["tokens"],
        train_source=windows["train"],
        validation_windows=windows["validation"],
        validation_tokens=config.validation_tokens,
    )


def _load_c4(config: DataConfig, root: str, cache: Path) -> TokenData:
    tokenizer = load_tokenizer(
        config.tokenizer,
        first_texts(root, "train", _C4_TOKENIZER_CHARACTERS),
        cache,
        corpus_sha256=_digest(root, _C4_TOKENIZER_CHARACTERS),
    )
    characters = config.validation_tokens * _C4_CHARACTERS_PER_TOKEN
    texts = list(first_texts(root, "validation", characters))
    tokens = flatten(texts, tokenizer)
    return TokenData(
        tokenizer=tokenizer,
        seq_len=config.seq_len,
        fingerprint=_digest(root, tokenizer.fingerprint, config.seq_len),
        bytes_per_token=sum(len(text.encode()) for text in texts) / len(tokens),
        train_source=Stream(root, tokenizer, config.seq_len),
        validation_windows=Windows(tokens, config.seq_len),
        validation_tokens=config.validation_tokens,
    )


def _digest(*parts: str | int) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _rows_of_process(batch_size: int, process_index: int, process_count: int) -> slice:
    if batch_size < 1 or batch_size % process_count or not 0 <= process_index < process_count:
        raise ValueError(
            f"batch_size={batch_size} can't be shared evenly: process {process_index} of "
            f"{process_count}"
        )
    share = batch_size // process_count
    return slice(process_index * share, (process_index + 1) * share)

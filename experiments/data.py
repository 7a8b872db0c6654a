"""Batches of packed token windows, the same for everyone, resumable at any batch."""

import dataclasses
import hashlib
import json

import grain
import numpy as np

from experiments.cache import cache_directory
from experiments.corpus import load_corpus
from experiments.packing import Windows, token_folder
from experiments.tokenizer import Tokenizer, load_tokenizer

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What to train on.

    Attributes:
        dataset: ``"registry"``, or a folder; see :func:`experiments.corpus.load_corpus`.
        tokenizer: ``"mistral"``, ``"bpe-N"`` or ``"bytes"``; see
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


class TokenData:
    """Training and validation batches over token files.

    Attributes:
        tokenizer: What made the tokens.
        vocab_size: Number of token ids.
        seq_len: Tokens predicted in each window.
        fingerprint: Hexadecimal digest of the corpus, the tokenizer and ``seq_len``.
        bytes_per_token: UTF-8 bytes a token stands for, on average over the validation text.
            A loss in nats a token divided by it is in nats a byte.
        counts: For each split its ``documents``, ``tokens`` and ``bytes``.
    """

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        train: Windows,
        validation: Windows,
        counts: dict[str, dict[str, int]],
        fingerprint: str,
        validation_tokens: int,
    ):
        self.tokenizer = tokenizer
        self.vocab_size = tokenizer.vocab_size
        self.seq_len = train.seq_len
        self.fingerprint = fingerprint
        self.counts = counts
        self.bytes_per_token = counts["validation"]["bytes"] / counts["validation"]["tokens"]
        self._train = train
        self._validation = validation
        self._validation_tokens = validation_tokens

    def train(
        self, batch_size: int, seed: int, *, process_index: int = 0, process_count: int = 1
    ) -> grain.DatasetIterator:
        """Endless batches ``{"tokens": int32 [rows, seq_len + 1]}``.

        Every epoch visits all windows in a new order that follows from ``seed``. The iterator's
        ``get_state()`` and ``set_state()`` are exact.

        Args:
            batch_size: Windows of the global batch.
            seed: Seed of the order.
            process_index: Which of the processes this is. Each gets its consecutive rows of the
                same global batch.
            process_count: Number of processes; must divide ``batch_size``.
        """
        rows = _rows_of_process(batch_size, process_index, process_count)

        def take(indices: np.ndarray) -> Batch:
            return {"tokens": self._train.take(indices[rows])}

        return iter(
            grain.MapDataset.range(len(self._train))
            .shuffle(seed)
            .repeat()
            .batch(batch_size)
            .map(take)
            .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
        )

    def validation(
        self, batch_size: int, *, process_index: int = 0, process_count: int = 1
    ) -> list[Batch]:
        """The same full batches every time, from windows spread evenly over the validation text.

        Raises:
            ValueError: If there are fewer windows than one batch takes.
        """
        rows = _rows_of_process(batch_size, process_index, process_count)
        available = len(self._validation)
        count = min(self._validation_tokens // self.seq_len, available)
        if count < batch_size:
            raise ValueError(
                f"validation has {count} windows of {self.seq_len} tokens ({available} available, "
                f"validation_tokens={self._validation_tokens}), fewer than batch_size={batch_size}"
            )
        chosen = np.linspace(0, available - 1, count).round().astype(np.int64)
        full = chosen[: count // batch_size * batch_size].reshape(-1, batch_size)
        return [{"tokens": self._validation.take(indices[rows])} for indices in full]


def load(config: DataConfig) -> TokenData:
    """Prepares the data of a configuration; only the first call downloads and tokenizes."""
    cache = cache_directory(config.cache_dir)
    corpus = load_corpus(config.dataset, cache)
    tokenizer = load_tokenizer(config.tokenizer, corpus.train, cache, corpus_sha256=corpus.sha256)
    folder = token_folder(corpus, tokenizer, cache)
    train, validation = (
        Windows(np.load(folder / f"{split}.npy", mmap_mode="r"), config.seq_len)
        for split in ("train", "validation")
    )
    return TokenData(
        tokenizer=tokenizer,
        train=train,
        validation=validation,
        counts=json.loads((folder / "counts.json").read_text()),
        fingerprint=_fingerprint(corpus.sha256, tokenizer.fingerprint, config.seq_len),
        validation_tokens=config.validation_tokens,
    )


def _fingerprint(*parts: str | int) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _rows_of_process(batch_size: int, process_index: int, process_count: int) -> slice:
    if batch_size % process_count or not 0 <= process_index < process_count:
        raise ValueError(
            f"batch_size={batch_size} can't be shared by process {process_index} of {process_count}"
        )
    share = batch_size // process_count
    return slice(process_index * share, (process_index + 1) * share)

"""Documents as one long row of token ids in a file, cut into windows."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import grain
import numpy as np
from rich.progress import Progress

from experiments.files import console, locked, replacing
from experiments.text.corpus import Corpus
from experiments.text.tokenizer import Tokenizer

# Characters handed to the tokenizer at once: enough for all cores, little memory.
_BATCH_CHARACTERS = 2_000_000
_FORMAT = "1"


class Windows:
    """Cuts a row of tokens into windows of ``seq_len + 1``, a stride of ``seq_len`` apart.

    A window's first ``seq_len`` tokens are inputs, its last ``seq_len`` targets. The one token
    that neighbours share makes every token but the first a target exactly once.
    """

    def __init__(self, tokens: np.ndarray, seq_len: int):
        self.tokens = tokens
        self.seq_len = seq_len

    def __len__(self) -> int:
        return max(len(self.tokens) - 1, 0) // self.seq_len

    def take(self, indices: np.ndarray) -> np.ndarray:
        """The windows of some indices, int32 ``[len(indices), seq_len + 1]``."""
        positions = np.asarray(indices)[:, None] * self.seq_len + np.arange(self.seq_len + 1)
        return self.tokens[positions].astype(np.int32)

    def batches(self, batch_size: int, seed: int, rows: slice = slice(None)) -> grain.IterDataset:
        """Endless batches int32 ``[batch_size, seq_len + 1]``, in a new order every epoch.

        Of each only some ``rows`` are read.
        """
        return (
            grain.MapDataset.range(len(self))
            .shuffle(seed)
            .repeat()
            .batch(batch_size)
            .map(lambda indices: self.take(np.asarray(indices)[rows]))
            .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
        )


def flatten(documents: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
    """Token ids of the documents in a row, each between bos and eos."""
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    rows = [np.zeros(0, dtype)]
    for ids in tokenizer.encode(documents):
        rows.append(np.array([tokenizer.bos_id, *ids, tokenizer.eos_id], dtype))
    return np.concatenate(rows)


def token_folder(corpus: Corpus, tokenizer: Tokenizer, cache: Path) -> Path:
    """The folder with ``train.npy``, ``validation.npy`` and ``counts.json``, made on first use."""
    key = json.dumps([_FORMAT, corpus.sha256, tokenizer.fingerprint])
    folder = cache / f"tokens-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    with locked(cache, folder.name):
        if not folder.exists():
            with replacing(folder) as temporary:
                temporary.mkdir()
                counts = {
                    "train": _write(corpus.train, tokenizer, temporary / "train.npy"),
                    "validation": _write(
                        corpus.validation, tokenizer, temporary / "validation.npy"
                    ),
                }
                (temporary / "counts.json").write_text(json.dumps(counts, indent=1))
    return folder


def _write(documents: list[str], tokenizer: Tokenizer, path: Path) -> dict[str, int]:
    """Writes the documents, shuffled once and for all, and counts what it wrote."""
    # Windows are shuffled anew every epoch. This first shuffle is for the windows that span two
    # documents: neighbours should come from anywhere, not from the same source.
    order = np.random.default_rng(0).permutation(len(documents))
    parts = []
    with Progress(console=console) as progress:
        task = progress.add_task(f"Tokenizing: {path.stem}", total=sum(map(len, documents)))
        for batch in _batches([documents[i] for i in order]):
            parts.append(flatten(batch, tokenizer))
            progress.advance(task, sum(map(len, batch)))
    tokens = np.concatenate(parts)
    np.save(path, tokens)
    byte_count = sum(len(document.encode()) for document in documents)
    return {"documents": len(documents), "tokens": len(tokens), "bytes": byte_count}


def _batches(documents: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch

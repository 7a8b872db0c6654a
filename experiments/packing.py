"""Documents as one long row of token ids in a file, cut into windows."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.progress import Progress

from experiments.cache import console, locked, replacing
from experiments.corpus import Corpus
from experiments.tokenizer import Tokenizer

# Characters handed to the tokenizer at once: enough for all cores, little memory.
_BATCH_CHARACTERS = 2_000_000
_VERSION = "1"


def token_folder(corpus: Corpus, tokenizer: Tokenizer, cache: Path) -> Path:
    """The folder with ``train.npy``, ``validation.npy`` and ``counts.json``, made on first use."""
    key = "\n".join([_VERSION, corpus.sha256, tokenizer.fingerprint])
    folder = cache / f"tokens-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    with locked(cache, folder.name):
        if not folder.exists():
            with replacing(folder) as temporary:
                temporary.mkdir()
                counts = {
                    split: _write(documents, tokenizer, temporary / f"{split}.npy")
                    for split, documents in (
                        ("train", corpus.train),
                        ("validation", corpus.validation),
                    )
                }
                (temporary / "counts.json").write_text(json.dumps(counts))
    return folder


def _write(documents: list[str], tokenizer: Tokenizer, path: Path) -> dict[str, int]:
    """Writes the documents, shuffled once and for all, and counts what it wrote."""
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    # Windows are shuffled again every epoch; this first shuffle is about the few windows that
    # span two documents, which should not always pair neighbours of one source.
    order = np.random.default_rng(0).permutation(len(documents))
    rows = []
    byte_count = 0
    with Progress(console=console) as progress:
        task = progress.add_task(f"Tokenizing {path.stem}", total=sum(map(len, documents)))
        for batch in _batches([documents[i] for i in order]):
            for ids in tokenizer.encode(batch):
                rows.append(np.array([tokenizer.bos_id, *ids, tokenizer.eos_id], dtype))
            byte_count += sum(len(document.encode()) for document in batch)
            progress.advance(task, sum(map(len, batch)))
    tokens = np.concatenate(rows) if rows else np.zeros(0, dtype)
    np.save(path, tokens)
    return {"documents": len(documents), "tokens": len(tokens), "bytes": byte_count}


def _batches(documents: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for document in documents:
        batch.append(document)
        if sum(map(len, batch)) >= _BATCH_CHARACTERS:
            yield batch
            batch = []
    if batch:
        yield batch


class Windows:
    """Cuts a row of tokens into windows of ``seq_len + 1``, each one token over the next.

    A window's first ``seq_len`` tokens are inputs, its last ``seq_len`` targets; the overlap
    makes every token but the first a target exactly once.
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

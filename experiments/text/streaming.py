"""C4 from the hub, tokenized while it streams, with a state that resumes exactly.

A pretrained LLaMA of the papers sees a part of C4 once, so nothing is kept on disk.
"""

import itertools
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain
import numpy as np

from experiments.text.packages import DownloadError
from experiments.text.packing import Windows, flatten
from experiments.text.tokenizer import Tokenizer

C4 = "allenai/c4"
_SHARDS = {"train": 1024, "validation": 8}
# Documents tokenized, and shuffled, together. C4's files are in random order already.
_BLOCK = 512


def c4_files(root: str, split: str) -> list[str]:
    """The English files of a split, on the hub or in a folder that is laid out like it."""
    if Path(root).is_dir():
        names = sorted(path.name for path in Path(root, "en").glob(f"c4-{split}.*.json.gz"))
        if not names:
            raise FileNotFoundError(f"no file en/c4-{split}.*.json.gz in {root}")
        return [f"en/{name}" for name in names]
    count = _SHARDS[split]
    return [f"en/c4-{split}.{i:05d}-of-{count:05d}.json.gz" for i in range(count)]


def open_c4(root: str, split: str, seed: int | None = None) -> Any:
    """C4's documents as a streamed ``datasets.IterableDataset`` with a field ``"text"``.

    Args:
        root: ``"allenai/c4"``, or a folder that is laid out like it.
        split: ``"train"`` or ``"validation"``.
        seed: Order of the files; None keeps theirs.
    """
    if not Path(root).is_dir():
        check_reachable("c4", "train on --dataset registry or a folder")
    import datasets  # noqa: PLC0415  slow to import, and only C4 needs it

    files = c4_files(root, split)
    if seed is not None:
        np.random.default_rng(seed).shuffle(files)
    return datasets.load_dataset(root, data_files={split: files}, split=split, streaming=True)


def first_texts(root: str, split: str, characters: int) -> Iterator[str]:
    """Documents from the start of a split, until they have so many characters."""
    for document in open_c4(root, split):
        yield document["text"]
        characters -= len(document["text"])
        if characters <= 0:
            break


def check_reachable(name: str, instead: str, seconds: float = 5.0) -> None:
    """Asks whether the hub answers at all, which ``datasets`` finds out by trying for a minute.

    Args:
        name: Of the data set, for the error.
        instead: What to do without it.
        seconds: To wait for.

    Raises:
        DownloadError: If it does not.
    """
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    request = urllib.request.Request(address, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=seconds).close()
    except urllib.error.HTTPError:
        return  # it answered
    except OSError as error:
        reason = getattr(error, "reason", None) or error
        raise DownloadError(
            f"dataset {name} comes from {address}, which can't be reached ({reason}): check the "
            f"network, or {instead}"
        ) from None


class Stream:
    """Endless windows of C4's training split."""

    def __init__(self, root: str, tokenizer: Tokenizer, seq_len: int):
        self.root = root
        self.tokenizer = tokenizer
        self.seq_len = seq_len

    def batches(self, batch_size: int, seed: int, rows: slice = slice(None)) -> grain.IterDataset:
        """Batches int32 ``[batch_size, seq_len + 1]``, prepared by a thread ahead of time.

        Every process reads the whole stream, since where a window begins follows from all before
        it, and keeps its ``rows``.
        """
        windows = _StreamedWindows(self, seed).batch(batch_size, drop_remainder=True)
        windows = windows.map(lambda tokens: tokens[rows])
        return grain.experimental.ThreadPrefetchIterDataset(windows, prefetch_buffer_size=4)


class _StreamedWindows(grain.IterDataset):
    def __init__(self, stream: Stream, seed: int):
        super().__init__()
        self.stream = stream
        self.seed = seed

    def __iter__(self) -> "_StreamedWindowsIterator":
        return _StreamedWindowsIterator(self.stream, self.seed)


class _StreamedWindowsIterator(grain.DatasetIterator):
    """Reads a block of documents, yields its windows, reads the next.

    The state is where the present block begins (position in the stream, and the tokens left over
    from the block before) and how many of its windows are out. Restoring reads the block again.
    """

    _windows: Windows
    _window: int

    def __init__(self, stream: Stream, seed: int):
        super().__init__()
        self._stream = stream
        self._seed = seed
        self.set_state({"epoch": 0, "block": 0, "documents": None, "leftover": [], "window": 0})

    def get_state(self) -> dict[str, Any]:
        return self._unopened_state or {**self._block_start, "window": self._window}

    def set_state(self, state: dict[str, Any]) -> None:
        # Nothing is opened before it is needed: a new iterator may be told another state first.
        self._unopened_state: dict[str, Any] | None = state

    def __next__(self) -> np.ndarray:
        if self._unopened_state:
            self._restore(self._unopened_state)
            self._unopened_state = None
        while self._window == len(self._windows):
            self._windows = self._read_block()
            self._window = 0
        self._window += 1
        return self._windows.take(np.array([self._window - 1]))[0]

    def _restore(self, state: dict[str, Any]) -> None:
        self._epoch, self._block = state["epoch"], state["block"]
        self._leftover = list(state["leftover"])
        self._open(state["documents"])
        self._windows = self._read_block()
        self._window = state["window"]

    def _open(self, position: dict[str, Any] | None) -> None:
        epoch_seed = int(np.random.SeedSequence([self._seed, self._epoch]).generate_state(1)[0])
        self._dataset = open_c4(self._stream.root, "train", epoch_seed)
        if position is not None:
            self._dataset.load_state_dict(position)
        self._documents: Iterator[dict[str, Any]] = iter(self._dataset)

    def _read_block(self) -> Windows:
        self._block_start = {
            "epoch": self._epoch,
            "block": self._block,
            "documents": self._dataset.state_dict(),
            "leftover": list(self._leftover),
        }
        texts = [document["text"] for document in itertools.islice(self._documents, _BLOCK)]
        if not texts:
            self._epoch += 1
            self._open(None)
        np.random.default_rng([self._seed, self._epoch, self._block]).shuffle(texts)
        self._block += 1
        tokens = np.concatenate([[*self._leftover], flatten(texts, self._stream.tokenizer)])
        windows = Windows(tokens.astype(np.int32), self._stream.seq_len)
        self._leftover = tokens[len(windows) * self._stream.seq_len :].astype(int).tolist()
        return windows

"""Tokenizers: LLaMA's kind with 32,000 ids, a small one trained here, or plain bytes."""

import abc
import hashlib
import itertools
import json
import os
import re
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece
import tokenizers

from experiments.files import cache_directory, console, locked, replacing
from experiments.text.packages import Package, fetch

_MISTRAL = Package(
    "mistral-common",
    "1.13.1",
    "98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af",
)
_MISTRAL_FILE = "mistral_common/data/tokenizer.model.v1"

# Merges learnt from more text hardly differ at these vocabulary sizes; this keeps it to seconds.
_BPE_TRAINING_CHARACTERS = 8_000_000

# Every character is in one word: letters, digits or signs, with the space before, or more space.
_WORDS = r" ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+"
_WORDS_REMEMBERED = 1_000_000


class Tokenizer(abc.ABC):
    """Text to token ids and back.

    Attributes:
        vocab_size: Number of ids.
        bos_id: Id that begins a document.
        eos_id: Id that ends a document.
        fingerprint: Hexadecimal digest: equal means the same ids for the same text.
    """

    vocab_size: int
    bos_id: int
    eos_id: int
    fingerprint: str

    @abc.abstractmethod
    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without bos and eos."""

    @abc.abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids; bos and eos leave nothing."""


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes, then bos and eos."""

    vocab_size, bos_id, eos_id = 258, 256, 257
    fingerprint = hashlib.sha256(b"bytes, bos 256, eos 257").hexdigest()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without bos and eos."""
        return [list(text.encode()) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids; bytes that are no UTF-8 become U+FFFD."""
        return bytes(i for i in ids if i < 256).decode(errors="replace")


class BpeTokenizer(Tokenizer):
    """Byte-level byte-pair encoding inside words, read from a ``tokenizers`` file."""

    bos_id, eos_id = 0, 1

    def __init__(self, path: Path):
        self._model = tokenizers.Tokenizer.from_file(str(path))
        self._ids_of_word: dict[str, list[int]] = {}
        self.vocab_size = self._model.get_vocab_size()
        self.fingerprint = hashlib.sha256(path.read_bytes()).hexdigest()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without bos and eos."""
        # No token reaches across words, and texts repeat their words: to encode each word once
        # and look it up takes a quarter of the time of encoding whole texts.
        texts_of_words = [re.findall(_WORDS, text) for text in texts]
        known = self._ids_of_word
        if len(known) > _WORDS_REMEMBERED:
            known.clear()
        new = list(set(itertools.chain.from_iterable(texts_of_words)).difference(known))
        encodings = self._model.encode_batch_fast(new, add_special_tokens=False)
        known.update((word, encoding.ids) for word, encoding in zip(new, encodings, strict=True))
        return [
            list(itertools.chain.from_iterable(map(known.__getitem__, words)))
            for words in texts_of_words
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids."""
        return self._model.decode(list(ids))


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model file."""

    def __init__(self, path: Path):
        self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self.vocab_size = self._model.vocab_size()
        self.bos_id, self.eos_id = self._model.bos_id(), self._model.eos_id()
        self.fingerprint = hashlib.sha256(path.read_bytes()).hexdigest()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without bos and eos; on all cores."""
        return self._model.encode(list(texts), num_threads=os.cpu_count() or 1)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids."""
        return self._model.decode(list(ids))


def load_tokenizer(
    name: str,
    corpus_documents: Iterable[str],
    cache_dir: str | os.PathLike[str] | None = None,
    *,
    corpus_sha256: str | None = None,
) -> Tokenizer:
    """Loads a tokenizer by name.

    Args:
        name: ``"mistral"``, 32,000 ids, a SentencePiece model of LLaMA's family; ``"bpe-N"``,
            byte-level BPE with N ids trained on the documents; ``"bytes"``.
        corpus_documents: Training documents; only ``"bpe-N"`` reads them, on first use.
        cache_dir: See :func:`experiments.cache.cache_directory`.
        corpus_sha256: Identifies the documents, which then are not read to find a trained
            tokenizer again; by default computed from them.

    Raises:
        ValueError: If the name is unknown.
        experiments.packages.DownloadError: If the package that holds the model can't be fetched.
    """
    if name == "bytes":
        return ByteTokenizer()
    cache = cache_directory(cache_dir)
    if name == "mistral":
        return SentencePieceTokenizer(_mistral_model(cache))
    kind, _, size = name.partition("-")
    if kind == "bpe" and size.isdecimal():
        if corpus_sha256 is None:
            corpus_documents = list(corpus_documents)
            corpus_sha256 = hashlib.sha256(json.dumps(corpus_documents).encode()).hexdigest()
        return BpeTokenizer(_trained_bpe(int(size), corpus_documents, cache, corpus_sha256))
    raise ValueError(f"unknown tokenizer {name!r}: expected 'mistral', 'bytes' or 'bpe-N'")


def _mistral_model(cache: Path) -> Path:
    path = cache / "tokenizers" / "mistral.model"
    with locked(path.parent, path.stem):
        if not path.exists():
            archive = fetch(_MISTRAL, cache)
            with zipfile.ZipFile(archive) as wheel, replacing(path) as temporary:
                temporary.write_bytes(wheel.read(_MISTRAL_FILE))
    return path


def _trained_bpe(size: int, documents: Iterable[str], cache: Path, corpus_sha256: str) -> Path:
    specials = ["<s>", "</s>"]
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    smallest = len(specials) + len(alphabet)
    if size < smallest:
        raise ValueError(
            f"bpe-{size}: expected at least {smallest} ids, the bytes with bos and eos"
        )
    path = cache / "tokenizers" / f"bpe-{size}-{corpus_sha256[:16]}.json"
    with locked(path.parent, path.stem):
        if not path.exists():
            console.print(f"Training a BPE tokenizer with {size} ids …")
            model = tokenizers.Tokenizer(tokenizers.models.BPE())
            model.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
                [
                    tokenizers.pre_tokenizers.Split(tokenizers.Regex(_WORDS), "isolated"),
                    tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            )
            model.decoder = tokenizers.decoders.ByteLevel()
            trainer = tokenizers.trainers.BpeTrainer(
                vocab_size=size,
                special_tokens=specials,
                initial_alphabet=sorted(alphabet),
                show_progress=console.is_terminal,
            )
            model.train_from_iterator(_sample(documents), trainer)
            if model.get_vocab_size() != size:
                raise ValueError(
                    f"bpe-{size}: the corpus yields {model.get_vocab_size()} ids; ask for fewer"
                )
            with replacing(path) as temporary:
                model.save(str(temporary))
    return path


def _sample(documents: Iterable[str]) -> list[str]:
    """An even sample of the documents, so that every source takes part."""
    documents = list(documents)
    characters = sum(map(len, documents))
    return documents[:: -(-characters // _BPE_TRAINING_CHARACTERS)]

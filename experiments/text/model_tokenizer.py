"""The tokenizer that belongs to a checkpoint: its ids, what ends a text, how a chat is written."""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2.sandbox
import sentencepiece
import tokenizers

FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "chat_template.jinja", "added_tokens.json", "generation_config.json", "vocab.txt",
)  # fmt: skip


class ModelTokenizer:
    """Reads ``tokenizer.json``, or a SentencePiece ``tokenizer.model``, of a Hugging Face folder.

    Args:
        folder: Of the checkpoint.

    Attributes:
        bos: Ids that begin a text: one, or none if the model wants none.
        eos_id: Id that ends a text.
        vocab_size: Number of ids.
        fingerprint: Hexadecimal digest: equal means the same ids for the same text.

    Raises:
        FileNotFoundError: If the folder holds no tokenizer.
        ValueError: If nothing says which token ends a text.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._settings = _object(self.folder / "tokenizer_config.json")
        fast, slow = self.folder / "tokenizer.json", self.folder / "tokenizer.model"
        self._fast: tokenizers.Tokenizer | None = None
        self._slow: sentencepiece.SentencePieceProcessor | None = None
        if fast.is_file():
            self._fast = read_tokenizer(fast)
            self.vocab_size = self._fast.get_vocab_size()
        elif slow.is_file():
            try:
                self._slow = sentencepiece.SentencePieceProcessor(model_file=str(slow))
            except RuntimeError as error:
                raise ValueError(f"{slow}: no SentencePiece model ({error})") from None
            self.vocab_size = self._slow.vocab_size()
        else:
            raise FileNotFoundError(
                f"{self.folder} has no tokenizer: expected tokenizer.json or tokenizer.model"
            )
        self._model_config = _object(self.folder / "config.json")
        eos = self._id("eos")
        if eos is None:
            raise ValueError(
                f"{self.folder}: neither tokenizer_config.json nor config.json names an eos token"
            )
        self.eos_id = eos
        bos = self._id("bos")
        # A SentencePiece model without settings is LLaMA's, which begins texts with <s>.
        wanted = self._settings.get("add_bos_token", self._slow is not None)
        self.bos = [bos] if wanted and bos is not None else []
        file = fast if fast.is_file() else slow
        said = json.dumps([self.bos, self.eos_id, self.template])
        self.fingerprint = hashlib.sha256(file.read_bytes() + said.encode()).hexdigest()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without bos and eos; special tokens in the text are read."""
        if self._fast is not None:
            encodings = self._fast.encode_batch(list(texts), add_special_tokens=False)
            return [encoding.ids for encoding in encodings]
        assert self._slow is not None
        return self._slow.encode(list(texts), num_threads=os.cpu_count() or 1)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, without special tokens."""
        model = self._fast if self._fast is not None else self._slow
        assert model is not None
        return model.decode([int(i) for i in ids])

    @property
    def template(self) -> str | None:
        """The chat template, in Jinja's language."""
        file = self.folder / "chat_template.jinja"
        if file.is_file():
            return file.read_text(encoding="utf-8")
        template = self._settings.get("chat_template")
        if isinstance(template, list):  # several with names
            return next((t["template"] for t in template if t.get("name") == "default"), None)
        return template

    def render(self, messages: list[dict[str, str]], answer_next: bool) -> str:
        """A chat as the model reads it.

        Args:
            messages: ``role`` and ``content`` of every turn.
            answer_next: Whether the text goes on to where the assistant's answer begins.

        Raises:
            ValueError: If the checkpoint has no chat template, or it refuses the messages.
        """
        if self.template is None:
            raise ValueError(
                f"{self.folder} has no chat template: give prompt and completion, not messages"
            )
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        try:
            return environment.from_string(self.template).render(
                messages=messages,
                add_generation_prompt=answer_next,
                bos_token=self._named("bos") or "",
                eos_token=self._named("eos") or "",
            )
        except jinja2.TemplateError as error:
            raise ValueError(f"{self.folder}: the chat template fails: {error}") from None

    def copy_files(self, folder: Path) -> None:
        """Copies everything about the tokenizer into another folder."""
        copy_files(self.folder, folder)

    def _named(self, which: str) -> str | None:
        token = self._settings.get(f"{which}_token")
        return token.get("content") if isinstance(token, dict) else token

    def _id(self, which: str) -> int | None:
        token = self._named(which)
        if token is not None:
            found = None
            if self._fast is not None:
                found = self._fast.token_to_id(token)
            elif self._slow is not None:
                found = self._slow.piece_to_id(token)
            if found is not None:
                return int(found)
        value = self._model_config.get(f"{which}_token_id")
        if isinstance(value, list):  # several may end a text: the first will do
            value = value[0] if value else None
        if value is None and self._slow is not None:
            value = self._slow.eos_id() if which == "eos" else self._slow.bos_id()
        return value


def read_tokenizer(file: Path) -> tokenizers.Tokenizer:
    """The tokenizer in a ``tokenizer.json``.

    Raises:
        ValueError: If there is none in it.
    """
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises no narrower one
        raise ValueError(f"{file}: no tokenizer ({error})") from None


def copy_files(source: Path, folder: Path) -> None:
    """Copies everything about a tokenizer from one folder into another."""
    for name in FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    return value if isinstance(value, dict) else {}

"""Your own examples: `.jsonl` files with a prompt and an answer, a chat, or a label on a line."""

import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.text.examples import Example, Part, TaskData, choice, completion

Render = Callable[[list[dict[str, str]], bool], str]
"""A chat as the model reads it; with True, up to where its next answer begins."""

FORMS = (
    '{"prompt": ..., "completion": ...}, {"messages": [{"role": ..., "content": ...}, ...]} or '
    '{"text": ..., "label": ...}'
)
_NAMES_OF_TESTS = ("test.jsonl", "validation.jsonl", "test.jsonl.gz", "validation.jsonl.gz")


def load(path: Path, render: Render) -> TaskData:
    """Examples of a folder with ``train.jsonl`` and perhaps ``test.jsonl``, or of one file.

    Without a test file every tenth line is held out.

    Args:
        path: The folder or file.
        render: Of the model's chat template.

    Raises:
        FileNotFoundError: If the folder has no ``train.jsonl``.
        ValueError: If a file is empty or a line has none of the ``FORMS``; names file and line.
    """
    if path.is_file():
        lines, held_out = _lines(path), None
    else:
        names = ("train.jsonl", "train.jsonl.gz")
        train = next((path / name for name in names if (path / name).is_file()), None)
        if train is None:
            raise FileNotFoundError(f"{path} has no train.jsonl")
        lines = _lines(train)
        tests = [path / name for name in _NAMES_OF_TESTS if (path / name).is_file()]
        held_out = _lines(tests[0]) if tests else None
    if held_out is None:
        if len(lines) < 2:
            raise ValueError(f"{path}: one example alone leaves none to test on")
        held_out = lines[9::10] or lines[-1:]
        chosen = {where for where, _ in held_out}
        lines = [line for line in lines if line[0] not in chosen]
    labels = _labels(lines + held_out)
    return TaskData(
        path.stem,
        [_example(*line, labels, render) for line in lines],
        [_example(*line, labels, render) for line in held_out],
    )


def _lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Each line's object, and where it stands."""
    found = []
    opener = gzip.open if path.name.endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                where = f"{path}:{number}"
                try:
                    value = json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{where}: not JSON ({error})") from None
                if not isinstance(value, dict):
                    raise ValueError(f"{where}: expected an object like {FORMS}")
                found.append((where, value))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason})") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: damaged or cut short ({error})") from None
    if not found:
        raise ValueError(f"{path} is empty: expected lines like {FORMS}")
    return found


def _labels(lines: list[tuple[str, dict[str, Any]]]) -> tuple[str, ...]:
    """All labels that occur, in alphabetical order."""
    labelled = [line for line in lines if "label" in line[1]]
    labels = tuple(sorted({_label(*line) for line in labelled}))
    if len(labels) == 1:
        raise ValueError(
            f"{labelled[0][0]}: every label is{labels[0]}, so there is nothing to learn"
        )
    return labels


def _label(where: str, value: dict[str, Any]) -> str:
    label = value["label"]
    if not isinstance(label, str | int | float) or not str(label).strip():
        raise ValueError(f"{where}: the label is {label!r}, expected a word or a number")
    return f" {str(label).strip()}"


def _example(where: str, value: dict[str, Any], labels: tuple[str, ...], render: Render) -> Example:
    if "messages" in value:
        return _chat(where, value["messages"], render)
    if "label" in value:
        text = _text(where, value, "text" if "text" in value else "prompt")
        gold = labels.index(_label(where, value))
        return choice(f"{text.strip()}\nLabel:", labels, gold)
    if "prompt" in value and "completion" in value:
        answer = _text(where, value, "completion")
        if not answer.strip():
            raise ValueError(f"{where}: the completion is empty")
        return completion(_text(where, value, "prompt"), answer)
    raise ValueError(f"{where}: has the fields {sorted(value)}, expected {FORMS}")


def _text(where: str, value: dict[str, Any], name: str) -> str:
    text = value.get(name)
    if not isinstance(text, str):
        raise ValueError(f"{where}: {name} is of type {type(text).__name__}, expected text")
    return text


def _chat(where: str, messages: Any, render: Render) -> Example:
    """Every answer of the assistant is learned, with whatever the template ends it by."""
    good = isinstance(messages, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
        for m in messages
    )
    if not good or not any(m["role"] == "assistant" for m in messages):
        raise ValueError(
            f"{where}: messages must be a list of role and content with an answer by 'assistant'"
        )
    last = max(i for i, m in enumerate(messages) if m["role"] == "assistant")
    parts, done = [], ""
    for i, message in enumerate(messages[: last + 1]):
        if message["role"] != "assistant":
            continue
        before, after = render(messages[:i], True), render(messages[: i + 1], False)
        if not (before.startswith(done) and after.startswith(before)):
            raise ValueError(
                f"{where}: the chat template rewrites earlier turns, so that answers can't be told "
                "from the rest"
            )
        parts += [Part(before[len(done) :], False), Part(after[len(before) :], True)]
        done = after
    return Example(tuple(parts), ends=False)

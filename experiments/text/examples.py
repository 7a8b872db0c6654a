"""What fine-tuning learns from: texts of which some parts are answers."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence


@dataclasses.dataclass(frozen=True)
class Part:
    """A piece of an example's text.

    Attributes:
        text: As the model reads it.
        learned: Whether the loss counts its tokens.
    """

    text: str
    learned: bool


@dataclasses.dataclass(frozen=True)
class Example:
    """One text.

    Attributes:
        parts: In order; the last is learned.
        choices: Where the last part is one of several answers, all of them in their order.
        ends: Whether the end-of-text token follows the last part.
    """

    parts: tuple[Part, ...]
    choices: tuple[str, ...] = ()
    ends: bool = True

    @property
    def gold(self) -> int:
        """Which of the choices is right."""
        return self.choices.index(self.parts[-1].text)

    @property
    def prompt(self) -> str:
        """Everything before the last part."""
        return "".join(part.text for part in self.parts[:-1])


def completion(prompt: str, answer: str) -> Example:
    """A prompt and what should follow."""
    return Example((Part(prompt, False), Part(answer, True)))


def choice(prompt: str, choices: Sequence[str], gold: int) -> Example:
    """A prompt and which of several answers should follow.

    Example:
        >>> example = choice("2 + 2 =", [" 3", " 4"], gold=1)
        >>> example.parts[-1].text, example.gold
        (' 4', 1)
    """
    return Example((Part(prompt, False), Part(choices[gold], True)), tuple(choices))


@dataclasses.dataclass(frozen=True)
class TaskData:
    """A task's examples.

    Attributes:
        name: What people call it.
        train: To learn from.
        test: Held out.
    """

    name: str
    train: Sequence[Example]
    test: Sequence[Example]

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest: equal means the same examples."""
        digest = hashlib.sha256()
        for split in (self.train, self.test):
            for example in split:
                digest.update(json.dumps(dataclasses.astuple(example)).encode())
            digest.update(b"|")
        return digest.hexdigest()


Loader = Callable[[], TaskData]

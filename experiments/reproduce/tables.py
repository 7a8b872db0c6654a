"""What a table consists of; each table is a file of its own."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Table:
    """A question that runs answer.

    Attributes:
      question: in one line.
      methods: what is compared, the most important first.
      beside: the methods that each of them is tested against.
      seeds: how many of each.
    """

    question: str
    methods: tuple[str, ...]
    beside: tuple[str, ...] = ("fira",)
    seeds: int = 3

"""What a mutant is."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """One change of the source.

    Attributes:
      why: what is broken.
      file: below ``fira_jax/``.
      old: text in the source.
      new: what replaces it.
      tests: the file, or the files, of the suite that must fail.
    """

    why: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = ("methods/test_reference.py",)

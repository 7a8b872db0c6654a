"""What counts as a paragraph of prose, and when two paragraphs are the same."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator

_NOT_LETTERS = re.compile(r"[\W\d_]+")
_PLAIN = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ "
_FREQUENT = (
    "the of and to a in is that for it as with be on are this or by from an which was not at have"
)
_FREQUENT_WORDS = frozenset(_FREQUENT.split())
# Shorter repeats (headings, refrains, "Yes.") are ordinary language, not a copied text.
_SHORTEST_COPY = 40

ParagraphFilter = Callable[[str], bool]


def normalized(text: str) -> str:
    """The lower-cased letters alone, so that spacing, numbers and punctuation don't matter."""
    return _NOT_LETTERS.sub("", text.lower())


def is_verse_or_prose(paragraph: str) -> bool:
    """A loose filter for sources that are prose already: drops headings and tables."""
    return (
        len(paragraph) >= 40
        and len(paragraph.split()) >= 8
        and _share_of_plain_characters(paragraph) > 0.8
    )


def is_clean_prose(paragraph: str) -> bool:
    """A strict filter, in the manner of C4's, for manuals: markup, code and formulas go.

    Paragraphs below 200 characters go too: in manuals they are mostly the same few sentences
    with another name in them, which exact de-duplication can't see.
    """
    if len(paragraph) < 200 or "{" in paragraph or "lorem ipsum" in paragraph.lower():
        return False
    words = paragraph.split()
    frequent = sum(word.lower() in _FREQUENT_WORDS for word in words)
    return (
        len(words) >= 25
        and re.search(r"[.!?]", paragraph) is not None
        and _share_of_plain_characters(paragraph) >= 0.85
        and frequent >= 0.15 * len(words)
    )


def _share_of_plain_characters(paragraph: str) -> float:
    # ASCII on purpose: str.isalpha follows the Unicode tables of the running Python, and the
    # corpus must come out the same, byte for byte, under every one.
    others = len(paragraph.encode("ascii", "replace").translate(None, delete=_PLAIN))
    return 1 - others / max(len(paragraph), 1)


def clean(
    documents: Iterable[Iterable[str]], keep: ParagraphFilter, seen: set[bytes]
) -> Iterator[str]:
    """Documents given as paragraphs, filtered, without any paragraph that is in ``seen``.

    Args:
        documents: Each an iterable of paragraphs; runs of white space become one space.
        keep: Which paragraphs to keep.
        seen: Digests of the paragraphs met so far; grows. Share it between sources to remove
            copies across them.

    Yields:
        Each document that has a paragraph left, one paragraph a line.
    """
    for document in documents:
        joined = (" ".join(paragraph.split()) for paragraph in document)
        if paragraphs := list(new_paragraphs(filter(keep, joined), seen)):
            yield "\n".join(paragraphs)


def new_paragraphs(paragraphs: Iterable[str], seen: set[bytes]) -> Iterator[str]:
    """The paragraphs whose normalized text is not in ``seen``, which grows."""
    for paragraph in paragraphs:
        letters = normalized(paragraph)
        if len(letters) >= _SHORTEST_COPY:
            digest = hashlib.sha256(letters.encode()).digest()[:12]
            if digest in seen:
                continue
            seen.add(digest)
        yield paragraph

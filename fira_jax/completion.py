"""An object that has a protocol's methods but not its class, completed by the defaults."""

from __future__ import annotations

import functools
from typing import Any


def completed(value: Any, protocol: Any) -> Any:
    """The value as an instance of ``protocol``, an abstract class; None if it lacks a method.

    A user's own dataclass need not derive from the class: it gets a class that derives from both,
    in which its own members come first.
    """
    if isinstance(value, protocol):
        return value
    needed = getattr(protocol, "__abstractmethods__", ())
    if isinstance(value, type) or not all(hasattr(value, name) for name in needed):
        return None
    new: Any = object.__new__(_derived(type(value), protocol))  # type: ignore[arg-type]
    vars(new).update(vars(value))
    return new


@functools.cache
def _derived(kind: type, protocol: type) -> type:
    return type(protocol)(kind.__name__, (kind, protocol), {"__doc__": kind.__doc__})

"""Arguments that are not what they must be get an error that names them."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

STATIC_ARGS = "static_args=('rank', 'update_proj_gap', 'mask', 'weight_dimension_numbers')"
"""What ``optax.inject_hyperparams`` must be told to leave alone."""

_INFINITY = float("inf")
_LIBRARIES = {"fira_jax", "optax", "jax", "flax", "contextlib", "functools"}


def number(name: str, value: Any, *, least: float = -_INFINITY, below: float = _INFINITY) -> Any:
    """A number as it is to be used: checked where it is known, in float32 where it is an array.

    ``optax.inject_hyperparams`` hands numbers over in the parameters' dtype. In bfloat16 0.999 is
    1, and an average with such a decay would never move. A number that a narrow dtype has rounded
    up to ``below`` was less than half of the last place away: it is read as half of that away,
    which is 0.99902 here.

    Args:
      name: the argument's name.
      value: a number, or a scalar array, which may be traced.
      least: the least number allowed; a traced one that is smaller becomes it.
      below: what the number must be smaller than; a traced one that is not becomes the next such.

    Raises:
      TypeError: it is not a number.
      ValueError: it is known and out of range.
    """
    if isinstance(value, np.ndarray | np.generic) and value.size == 1:
        value = value.item()
    if isinstance(value, jax.Array) and value.dtype != bool:
        return _array(name, value, least, below)
    if callable(value):
        raise TypeError(
            f"{name} must be a number, got a function: only learning_rate may be a schedule, and "
            "optax.inject_hyperparams lets other numbers follow one"
        )
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")
    _require_range(name, value, least, below)
    return value


def decay(name: str, value: Any) -> Any:
    """The decay of an average, at least 0 and below 1, see :func:`number`."""
    return number(name, value, least=0, below=1)


def epsilon(name: str, value: Any) -> Any:
    """What is added to a denominator, which must not be zero: float16 has no 1e-8."""
    value = number(name, value, least=0)
    tiny = float(np.finfo(np.float32).tiny)
    return jnp.maximum(value, tiny) if isinstance(value, jax.Array) else max(value, tiny)


def _array(name: str, value: jax.Array, least: float, below: float) -> jax.Array:
    wide = value.astype(jnp.promote_types(value.dtype, jnp.float32))
    narrow = jnp.issubdtype(value.dtype, jnp.floating) and jnp.finfo(value.dtype).bits < 32
    # What a narrow dtype holds may be rounded out of range, which is mended below.
    if (
        not narrow
        and not isinstance(value, jax.core.Tracer)
        and value.is_fully_addressable
        and not value.ndim
    ):
        _require_range(name, float(value), least, below)
    if least > -_INFINITY:
        wide = jnp.maximum(wide, least)
    if below < _INFINITY:
        last = float(jnp.finfo(value.dtype).eps) / 8 if narrow else float(jnp.finfo(wide).eps) / 2
        wide = jnp.minimum(wide, below * (1 - last))
    return wide


def _require_range(name: str, value: float, least: float, below: float) -> None:
    if not least <= value < below:
        above = f"at least {least}" if least > -_INFINITY else ""
        under = f"below {below}" if below < _INFINITY else ""
        allowed = " and ".join(filter(None, (above, under))) or "finite"
        raise ValueError(f"{name} must be {allowed}, got {value}")


def require_learning_rate(value: Any) -> None:
    """Raises ``TypeError`` unless ``value`` is a number, an array or a schedule."""
    if not callable(value) and not isinstance(value, jax.Array | np.ndarray | int | float):
        raise TypeError(f"learning_rate must be a number or a schedule, got {value!r}")


def require_count(name: str, value: Any) -> None:
    """Raises an error naming the argument unless ``value`` is a static integer above 0."""
    if isinstance(value, jax.Array):
        raise TypeError(
            f"{name} must be a static int, got a JAX array: with optax.inject_hyperparams "
            f"pass {STATIC_ARGS}" + ("" if f"'{name}'" in STATIC_ARGS else f" and '{name}'")
        )
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def require_float_dtype(name: str, dtype: jax.typing.DTypeLike) -> None:
    """Raises ``ValueError`` naming the argument unless ``dtype`` is a floating-point dtype."""
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"{name} must be a floating-point dtype, got {jnp.dtype(dtype)}")


def require_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raises ``ValueError`` naming the argument unless ``value`` is among ``choices``."""
    choices = tuple(choices)
    if value not in choices:
        known = ", ".join(map(repr, choices))
        raise ValueError(
            f"{name} must be one of {known}, got {value!r}{did_you_mean(value, choices)}"
        )


def did_you_mean(value: Any, choices: Iterable[str]) -> str:
    """``": did you mean 'svd'?"`` if a choice is much like ``value``, else nothing."""
    near = difflib.get_close_matches(str(value), list(choices), n=1)
    return f": did you mean {near[0]!r}?" if near else ""


def warn(message: str) -> None:
    """Warns, and names the line from which the libraries were called, however many there are."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _LIBRARIES:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)

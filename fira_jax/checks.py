"""Arguments that are not what they must be get an error that names them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def require_count(name: str, value: Any) -> None:
    """Raises an error naming the argument unless ``value`` is a static integer above 0."""
    if isinstance(value, jax.Array):
        raise TypeError(
            f"{name} must be a static int, got a JAX array: with optax.inject_hyperparams "
            "pass static_args=('rank', 'update_proj_gap')"
        )
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def require_float_dtype(name: str, dtype: jax.typing.DTypeLike) -> None:
    """Raises ``ValueError`` naming the argument unless ``dtype`` is a floating-point dtype."""
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"{name} must be a floating-point dtype, got {jnp.dtype(dtype)}")


def require_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises ``ValueError`` naming the argument unless ``value`` is among ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")

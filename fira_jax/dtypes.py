"""Which dtypes the state has, and that it keeps them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fira_jax.trees import Params


def state_dtype(dtype: jax.typing.DTypeLike) -> np.dtype:
    """The dtype of moments for parameters of ``dtype``: float32 for those that reach less far.

    A square of 300 is beyond float16, so second moments of ordinary gradients would be infinite.
    Bfloat16 has the exponents of float32 and keeps its two bytes.
    """
    narrow = jnp.finfo(dtype).maxexp < jnp.finfo(jnp.float32).maxexp
    return jnp.dtype(jnp.float32 if narrow else dtype)


def steady(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The same transformation, whose state has the same dtypes after every update.

    Optax's own compute in the wider dtype of gradient and state and keep the result, so that the
    state of bfloat16 parameters becomes float32 with the first float32 gradient and no longer fits
    a ``lax.scan``. Float16 arrays are shown to it in float32, see :func:`state_dtype`.
    """
    inner = optax.with_extra_args_support(inner)

    def shown(x: Any) -> Any:
        if not hasattr(x, "dtype") or not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        dtype = state_dtype(x.dtype)
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(x.shape, dtype)
        return x if x.dtype == dtype else x.astype(dtype)

    def init(params: Params) -> optax.OptState:
        return inner.init(jax.tree.map(shown, params))

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        seen = jax.tree.map(shown, updates)
        new, after = inner.update(seen, state, jax.tree.map(shown, params), **extra_args)

        def back(x: Any, given: Any, wide: Any) -> Any:
            return x if given.dtype == wide.dtype else x.astype(given.dtype)

        new = jax.tree.map(back, new, updates, seen)
        return new, jax.tree.map(_like, after, state)

    return optax.GradientTransformationExtraArgs(init, update)


def _like(x: Any, before: Any) -> Any:
    return x.astype(before.dtype) if hasattr(before, "dtype") and x.dtype != before.dtype else x

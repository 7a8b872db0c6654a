"""Weights in 8 bits, updated by stochastic rounding."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fira_jax.codes import Linear, blocks, decode_linear, encode_linear, unblocks
from fira_jax.random_bits import random_bits
from fira_jax.trees import Params, path_name, require_same_leaves, unbox


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantizedWeight:
    """One weight in 8 bits; neighbours along its last axis share a spacing of their levels.

    Attributes:
      codes: uint8 of the weight's shape.
      spacing: float32 ``[..., groups]``, the distance between neighbouring levels.
      origin: uint8 ``[..., groups]``, the code of 0.
      group: how many neighbours share a spacing.
      dtype: the weight's dtype.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> weight = fira_jax.precision.quantize_weights({"w": jnp.ones((64, 512))})["w"]
      >>> weight.codes.dtype, weight.codes.shape, weight.spacing.shape
      (dtype('uint8'), (64, 512), (64, 2))
    """

    codes: jax.Array
    spacing: jax.Array
    origin: jax.Array
    group: int = dataclasses.field(metadata={"static": True})
    dtype: np.dtype = dataclasses.field(metadata={"static": True})


def quantize_weights(
    params: Params,
    *,
    group: int = 256,
    min_size: int = 4096,
    mask: Any | Callable[[Params], Any] | None = None,
    seed: jax.typing.ArrayLike = 0,
) -> Any:
    """Stores weights in 8 bits, for training in which no other copy of them exists.

    Args:
      params: parameters.
      group: how many neighbours along the last axis share a spacing.
      min_size: parameters of fewer numbers stay as they are.
      mask: a tree of bools like ``params``, or a callable that makes one: which parameters to
        store so. None for all floating-point ones of two or more dimensions.
      seed: seeds the first rounding.

    Returns:
      ``params`` with a :class:`QuantizedWeight` for each of these.

    Raises:
      ValueError: ``group`` is not positive.

    Example:
      >>> import fira_jax, jax, jax.numpy as jnp, optax
      >>> target = jax.random.normal(jax.random.key(0), (64, 256))
      >>> def loss(params):
      ...     return jnp.mean((params["w"] - target) ** 2)
      >>> tx = optax.sgd(1e3)
      >>> weights = fira_jax.precision.quantize_weights({"w": jnp.zeros((64, 256))})
      >>> state = tx.init(fira_jax.precision.dequantize_weights(weights))
      >>> @jax.jit
      ... def train_step(weights, state, step):
      ...     params = fira_jax.precision.dequantize_weights(weights)
      ...     updates, state = tx.update(jax.grad(loss)(params), state, params)
      ...     return fira_jax.precision.apply_quantized_updates(weights, updates, step), state
      >>> for step in range(20):
      ...     weights, state = train_step(weights, state, step)
      >>> bool(loss(fira_jax.precision.dequantize_weights(weights)) < 0.01)
      True

    References:
      Zhang et al., `Q-GaLore <https://arxiv.org/abs/2407.08296>`_, 2024. Deviation from the
      released code: spacings are of four kinds to an octave, so that weights whose update is zero
      stay what they are; there, every step rounds all of them anew.
    """
    if group < 1:
        raise ValueError(f"group must be at least 1, got {group}")
    params = unbox(params)
    chosen = mask(params) if callable(mask) else mask
    if chosen is None:
        chosen = jax.tree.map(lambda x: x.ndim >= 2, params)

    def quantize(path: Any, x: Any, wanted: bool) -> Any:
        if not wanted or x.size < min_size or not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        size = min(group, x.shape[-1])
        return _encode(x, size, x.dtype, random_bits(seed, -1, path_name(path), x.shape))

    return jax.tree_util.tree_map_with_path(quantize, params, chosen)


def dequantize_weights(weights: Any, *, rows_at_a_time: int | None = None) -> Params:
    """The parameters that ``weights`` stand for, in their own dtypes; made anew for each step.

    Args:
      weights: what :func:`quantize_weights` returned.
      rows_at_a_time: decodes so many rows at a time, one after the other, to bound temporaries in
        float32, several times as large as a weight. Not for weights that are spread over devices.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> weights = fira_jax.precision.quantize_weights({"w": jnp.ones((64, 512), jnp.bfloat16)})
      >>> fira_jax.precision.dequantize_weights(weights)["w"].dtype
      dtype(bfloat16)
    """

    def decode(x: Any) -> Any:
        if not _is_quantized(x):
            return x
        return _by_rows(lambda row, _: _decode(row).astype(x.dtype), x, rows_at_a_time)

    return jax.tree.map(decode, weights, is_leaf=_is_quantized)


def apply_quantized_updates(
    weights: Any,
    updates: optax.Updates,
    step: jax.typing.ArrayLike,
    *,
    seed: jax.typing.ArrayLike = 0,
    rows_at_a_time: int | None = None,
) -> Any:
    """``optax.apply_updates`` for weights in 8 bits, rounded at random, right on average.

    An update is far smaller than the distance between two codes. Rounded to the nearest, none would
    ever change a weight.

    Args:
      weights: what :func:`quantize_weights` returned.
      updates: a tree like the parameters.
      step: count of steps taken. With ``seed``, path and position it decides the rounding, so that
        a resumed run repeats it.
      seed: seeds the rounding.
      rows_at_a_time: as in :func:`dequantize_weights`; makes no difference to the result.

    Raises:
      ValueError: ``updates`` has not one array for each weight.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> weights = fira_jax.precision.quantize_weights({"w": jnp.ones((64, 512))})
      >>> updates = {"w": jnp.full((64, 512), -1e-4)}
      >>> new = fira_jax.precision.apply_quantized_updates(weights, updates, step=0)
      >>> round(float(fira_jax.precision.dequantize_weights(new)["w"].mean()), 4)
      0.9999
    """
    paths, treedef = jax.tree_util.tree_flatten_with_path(weights, is_leaf=_is_quantized)
    flat = jax.tree.leaves(updates)
    require_same_leaves(flat, paths)
    new: list[Any] = []
    for (path, x), update in zip(paths, flat, strict=True):
        if _is_quantized(x):
            name = path_name(path)

            def add(x: Any, first_row: Any, update: jax.Array, name: str = name) -> Any:
                bits = random_bits(seed, step, name, x.codes.shape, first_row)
                return _encode(_decode(x) + update, x.group, x.dtype, bits)

            new.append(_by_rows(add, x, rows_at_a_time, update))
        else:
            new.append(jnp.asarray(x + update).astype(x.dtype))
    return jax.tree.unflatten(treedef, new)


def _by_rows(
    f: Callable[..., Any], x: QuantizedWeight, rows_at_a_time: int | None, *others: jax.Array
) -> Any:
    """``f(rows, number of the first, *others)``, at once or some rows after the others."""
    leading = x.codes.shape[:-1]
    rows = math.prod(leading)
    if rows_at_a_time is None or rows <= rows_at_a_time:
        return f(x, 0, *others)
    flat = lambda a: a.reshape(rows, a.shape[-1])  # noqa: E731
    scanned = jax.tree.map(flat, (x, others))
    found = jax.lax.map(
        lambda row: f(row[0][0], row[1], *row[0][1]),
        (scanned, jnp.arange(rows)),
        batch_size=rows_at_a_time,
    )
    return jax.tree.map(lambda a: a.reshape(*leading, a.shape[-1]), found)


def _encode(x: jax.Array, group: int, dtype: np.dtype, random: jax.Array) -> QuantizedWeight:
    stored = encode_linear(blocks(x, group), 8, blocks(random, group))
    codes = unblocks(stored.codes, x.shape[-1])
    return QuantizedWeight(codes, stored.spacing[..., 0], stored.origin[..., 0], group, dtype)


def _decode(x: QuantizedWeight) -> jax.Array:
    codes = blocks(x.codes, x.group)
    values = decode_linear(Linear(codes, x.spacing[..., None], x.origin[..., None]), 8)
    return unblocks(values, x.codes.shape[-1])


def has_quantized_weights(weights: Any) -> bool:
    """Whether any of ``weights`` is stored in 8 bits."""
    return any(map(_is_quantized, jax.tree.leaves(weights, is_leaf=_is_quantized)))


def _is_quantized(x: Any) -> bool:
    return isinstance(x, QuantizedWeight)

"""Optimizer state in 8 bits."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fira_jax.checks import require_choice
from fira_jax.codes import blocks, decode_log, encode_log, unblocks
from fira_jax.random_bits import random_bits
from fira_jax.trees import Params, map_leaves, path_name, unbox


class QuantizedState(NamedTuple):
    """State of :func:`quantize_state`.

    Attributes:
      count: steps taken, int32 scalar.
      codes: state of the inner transformation, each large array replaced by its codes, uint8 of
        the same shape.
      scales: for each of these arrays the scales of its blocks, float32 ``[..., blocks]``;
        ``optax.MaskedNode`` for all others.
    """

    count: jax.Array  # type: ignore[assignment]  # as Optax names it
    codes: Any
    scales: Any


def quantize_state(
    inner: optax.GradientTransformation,
    *,
    block_size: int = 256,
    min_size: int = 4096,
    rounding: Literal["stochastic", "nearest"] = "stochastic",
    seed: jax.typing.ArrayLike = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps the state of any transformation in 8 bits, and in float32 only during its update.

    Each number becomes the nearest (or one of the two nearest) of the levels

    .. math::

        \pm s\, 2^{-k / 8}, \quad k = 0, 1, 2, \ldots \qquad \text{and} \quad 0

    where :math:`s` is the largest magnitude of its block, ``block_size`` numbers along the last
    axis. A block without negative numbers, such as second moments, has 255 levels over 31.75
    octaves; any other has 127 of each sign over 15.75. Evenly spread levels would not do: second
    moments differ by orders of magnitude within a block, the small ones would become zero, and
    their updates would explode.

    An array of :math:`n` numbers with a last axis of length :math:`l` takes
    :math:`n + 4 (n / l) \lceil l / \mathrm{block} \rceil` bytes.

    Wrap what keeps the moments: ``quantize_state(scale_by_adam_in_subspace(low_rank))`` in a chain
    of pieces, or GaLore with 8-bit Adam in one line, see the example. Around
    :func:`fira_jax.low_rank_project` use a basis of its own instead,
    :class:`fira_jax.basis.Quantized`.

    Args:
      inner: the transformation.
      block_size: how many neighbours along the last axis share a scale.
      min_size: arrays of fewer numbers stay as they are, as in other libraries: they hardly count
        in bytes, and scales of normalization layers suffer most from rounding.
      rounding: ``"stochastic"`` rounds up or down at random, right on average: an average which
        moves by less than a level a step still arrives. ``"nearest"`` is what other libraries do;
        a second moment then stays behind its level for long.
      seed: seeds the rounding, together with step, path and position; no key is kept.

    Raises:
      ValueError: ``block_size`` or ``min_size`` is not positive, or unknown ``rounding``.

    Example:
      >>> import fira_jax, jax, jax.numpy as jnp, optax
      >>> adam = fira_jax.precision.quantize_state(optax.scale_by_adam())
      >>> tx = fira_jax.galore(1e-2, rank=16, base_optimizer=adam)
      >>> params = {"w": jnp.zeros((64, 1024))}
      >>> state = jax.eval_shape(tx.init, params)[1]
      >>> state.codes.mu["w"].dtype, state.codes.mu["w"].shape, state.scales.mu["w"].shape
      (dtype('uint8'), (16, 1024), (16, 4))
      >>> fira_jax.describe(tx, params).rows[0].state_bytes  # 64 r floats and 2 * (1024 + 16) r
      37376

    References:
      Dettmers et al., `8-bit Optimizers via Block-wise Quantization
      <https://arxiv.org/abs/2110.02861>`_, 2021: blocks, and levels that are not evenly spread.
      Deviations: levels at equal ratios rather than by decades, chosen block by block with or
      without signs, and stochastic rounding.
    """
    for name, value in (("block_size", block_size), ("min_size", min_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    require_choice("rounding", rounding, ("stochastic", "nearest"))
    inner = optax.with_extra_args_support(inner)

    def encode(state: optax.OptState, step: jax.Array) -> QuantizedState:
        paths, treedef = jax.tree_util.tree_flatten_with_path(state, is_leaf=_is_masked)
        codes, scales = [], []
        for path, x in paths:
            if _is_masked(x) or x.size < min_size or not jnp.issubdtype(x.dtype, jnp.floating):
                codes.append(x)
                scales.append(optax.MaskedNode())
                continue
            size = min(block_size, x.shape[-1])
            random = None
            if rounding == "stochastic":
                random = blocks(random_bits(seed, step, path_name(path), x.shape), size)
            code, scale = encode_log(blocks(x, size), random)
            codes.append(unblocks(code, x.shape[-1]))
            scales.append(scale[..., 0])
        return QuantizedState(
            step, jax.tree.unflatten(treedef, codes), jax.tree.unflatten(treedef, scales)
        )

    def decode(codes: Any, scales: Any) -> Any:
        if _is_masked(scales):
            return codes
        values = decode_log(blocks(codes, min(block_size, codes.shape[-1])), scales[..., None])
        return unblocks(values, codes.shape[-1])

    def init(params: Params) -> QuantizedState:
        # Behind a barrier: the compiler would fold the codes of all these zeros, for minutes.
        state = jax.lax.optimization_barrier(inner.init(unbox(params)))
        return encode(state, jnp.zeros([], jnp.int32))

    def update(
        updates: optax.Updates,
        state: QuantizedState,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, QuantizedState]:
        before = jax.tree.map(decode, state.codes, state.scales, is_leaf=_is_masked)
        new, after = inner.update(updates, before, params, **extra_args)

        def restore(x: Any, given: Any) -> tuple[Any, Any]:
            """In its dtype again: what computes in the dtype of its state has used float32."""
            arrays = hasattr(x, "dtype") and hasattr(given, "dtype")
            return x.astype(given.dtype) if arrays else x, given

        new, _ = map_leaves(restore, new, updates)
        return new, encode(after, optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)


def _is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)

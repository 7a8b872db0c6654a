"""How many bytes training takes on each device, before anything is allocated."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Sharding

from fira_jax.cost.describe import bytes_in_words, shape_in_words
from fira_jax.cost.liveness import Array, Size, nbytes, peak
from fira_jax.sharding.state import state_shardings
from fira_jax.state_owners import owned_state
from fira_jax.trees import Params, unbox


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each device; ``print`` shows them as a table.

    Attributes:
      weight_bytes: of the parameters.
      gradient_bytes: of a gradient for each of them, in its dtype and with its sharding.
      state_bytes: of the optimizer's state.
      refresh_bytes: what an update that replaces every basis needs besides these, estimated.
      largest: the largest array of those, as a shape and a dtype; None if there is none.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> fira_jax.memory(fira_jax.fira(1e-2, rank=8), {"w": jnp.zeros((64, 256))}).state_bytes
      18444
    """

    weight_bytes: int
    gradient_bytes: int
    state_bytes: int
    refresh_bytes: int
    largest: tuple[tuple[int, ...], Any] | None

    @property
    def total_bytes(self) -> int:
        """The sum: what an update needs when all gradients exist."""
        return self.weight_bytes + self.gradient_bytes + self.state_bytes + self.refresh_bytes

    def __str__(self) -> str:
        """A line for each."""
        shape, dtype = self.largest or ((), None)
        of = f"  (the largest array: {dtype} {shape_in_words(shape)})" if self.largest else ""
        lines = (
            ("weights", self.weight_bytes, ""),
            ("gradients", self.gradient_bytes, ""),
            ("optimizer state", self.state_bytes, ""),
            ("refresh", self.refresh_bytes, of),
            ("together", self.total_bytes, ""),
        )
        return "\n".join(
            f"{name:15}  {bytes_in_words(count):>9}{note}" for name, count, note in lines
        )


def memory(tx: optax.GradientTransformation, params: Params, param_shardings: Any = None) -> Memory:
    r"""Says what weights, gradients, state and a refresh take on each device.

    Nothing is computed or allocated. Weights, gradients and state are exact. The refresh is an
    estimate: the update is traced with all its branches, and followed from operation to operation,
    adding what is written and taking away what nothing reads any more. What is computed entry by
    entry counts only where it has to be written. Workspace inside of library routines (a
    factorization's, say) is not known. What the model's own forward and backward pass need, its
    activations, comes on top.

    With shardings, an array with the sides of a parameter, of one of its matrices or of a part of
    the state counts as split like that one, others as whole, and so does a matrix that is
    factorized as it is (an exact SVD).

    Args:
      tx: a transformation.
      params: parameters, as arrays or as ``jax.ShapeDtypeStruct``.
      param_shardings: a ``jax.sharding.NamedSharding`` for each parameter, all on one mesh, which
        may be a ``jax.sharding.AbstractMesh``; None for one device.

    Returns:
      A table to print, or to read attribute by attribute.

    Raises:
      ValueError: whatever ``tx.init`` would raise for these parameters, or there is not one
        ``NamedSharding`` for each of them.

    Example:
      >>> import fira_jax, jax, jax.numpy as jnp
      >>> params = {"w": jax.ShapeDtypeStruct((4096, 11008), jnp.bfloat16)}
      >>> print(fira_jax.memory(fira_jax.fira(1e-2, rank=64), params))
      weights           86.0 MiB
      gradients         86.0 MiB
      optimizer state    3.2 MiB
      refresh          176.6 MiB  (the largest array: float32 4096 x 11008)
      together         351.8 MiB
    """
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), unbox(params))
    state = jax.eval_shape(tx.init, params)
    size: Size = nbytes
    shardings = None
    if param_shardings is not None:
        shardings = param_shardings, state_shardings(tx, params, param_shardings)
        size = split_size(tx, params, *shardings)

    def update(params: Params, state: Any, grads: Params) -> Any:
        extra = optax.with_extra_args_support(tx)
        updates, state = extra.update(grads, state, params, value=jnp.float32(0))
        return optax.apply_updates(params, updates), state

    needed = peak(jax.make_jaxpr(update)(params, state, params), size)
    largest: Array | None = max(needed.arrays, key=lambda x: x.size, default=None)
    of_weights = device_bytes(params, shardings and shardings[0])
    return Memory(
        weight_bytes=of_weights,
        gradient_bytes=of_weights,
        state_bytes=device_bytes(state, shardings and shardings[1]),
        refresh_bytes=needed.size,
        largest=(largest.shape, largest.dtype) if largest else None,
    )


def device_bytes(arrays: Any, shardings: Any = None) -> int:
    """Bytes that each device has of a tree of arrays, abstract or not."""
    if shardings is None:
        return sum(nbytes(x.shape, x.dtype) for x in jax.tree.leaves(arrays))
    both = zip(jax.tree.leaves(arrays), jax.tree.leaves(unbox(shardings)), strict=True)
    return sum(nbytes(s.shard_shape(x.shape), x.dtype) for x, s in both)


def split_size(
    tx: optax.GradientTransformation, params: Params, param_shardings: Any, states: Any
) -> Size:
    """Bytes of an array on one device, if its sides are those of a parameter or of the state."""
    parts: dict[tuple[int, ...], int] = {}

    def learn(shape: tuple[int, ...], sharding: Sharding, batch: Iterable[int] = ()) -> None:
        """How many parts: of several arrays with these sides, what is split the least counts."""
        share = sharding.shard_shape(shape)
        sides = [i for i in range(len(shape)) if i not in batch]
        count = math.prod(shape[i] // share[i] for i in sides)
        key = _sides([shape[i] for i in sides])
        parts[key] = min(count, parts.get(key, count))

    leaves, owned, _ = owned_state(tx, params)
    for leaf, sharding in zip(leaves, jax.tree.leaves(unbox(param_shardings)), strict=True):
        learn(leaf.shape, sharding)
        if leaf.view is not None:
            learn(leaf.shape, sharding, leaf.view.batch_axes)
    for item, sharding in zip(owned, jax.tree.leaves(states), strict=True):
        learn(item.array.shape, sharding)
    return lambda shape, dtype: -(-nbytes(shape, dtype) // parts.get(_sides(shape), 1))


def _sides(shape: Iterable[int]) -> tuple[int, ...]:
    """The sides in any order, since a transposed array or one with an axis of 1 is split alike."""
    return tuple(sorted(x for x in shape if x > 1))

"""What is said once, at ``init``, of a choice of parameters that saves no memory."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fira_jax.basis.protocol import Basis
from fira_jax.checks import warn
from fira_jax.plan import Leaf

WORTH_A_WORD = 1 << 18
"""Elements of Adam's state from which on it matters: 1 MiB in float32."""

_CURE = (
    "see fira_jax.describe(tx, params); weight_dimension_numbers=fira_jax.match_modules() reads "
    "most models' layouts"
)


def warn_if_nothing_is_projected(plan: Sequence[Leaf | None]) -> None:
    """A tree without matrices is legal (Optax's own tests have it) but seldom what was meant."""
    leaves = [leaf for leaf in plan if leaf]
    if leaves and not any(leaf.view for leaf in leaves):
        warn(
            f"none of the {len(leaves)} parameters is a matrix, so nothing is projected and the "
            "optimizer works at full size (first parameter: "
            f"'{leaves[0].path}' with shape {leaves[0].shape}); {_CURE}"
        )


def warn_if_little_is_saved(plan: Sequence[Leaf | None], basis: Basis, *, chosen: bool) -> None:
    """Names what keeps the state as large as Adam's, if it is large at all.

    Two things do: projected parameters whose rank is (nearly) that of the whole matrix, and, where
    nobody chose the parameters, larger arrays left alone while smaller ones are taken, as the
    biases and norms of stacked layers are.

    Args:
      plan: what will happen to each parameter.
      basis: what is kept beside two moments.
      chosen: whether somebody said which parameters are projected.
    """
    sizes = [(leaf, 2 * math.prod(leaf.shape)) for leaf in plan if leaf]
    adams = sum(size for _, size in sizes)
    projected = [(leaf, size) for leaf, size in sizes if leaf.view]
    if adams < WORTH_A_WORD or not projected:
        return
    ours = sum(_state_of(leaf, basis) for leaf, _ in sizes)
    if ours < 0.95 * adams:
        return
    too_large = [leaf for leaf, size in projected if _state_of(leaf, basis) >= size]
    largest = max(size for _, size in projected)
    left = [] if chosen else [leaf for leaf, size in sizes if not leaf.view and size > largest]
    causes = []
    if left:
        causes.append(f"not projected, though larger than all that is: {_some(left)}")
    if too_large:
        causes.append(f"projected at the rank of the whole matrix or nearly: {_some(too_large)}")
    if causes:
        warn(
            f"the optimizer's state is {ours / adams:.0%} of Adam's ({'; '.join(causes)}); {_CURE}"
        )


def _state_of(leaf: Leaf, basis: Basis) -> int:
    """Elements of two moments and of a basis."""
    view = leaf.view
    if view is None:
        return 2 * math.prod(leaf.shape)
    stored = _stored(basis, view.compressed_size, view.rank)
    return math.prod(view.batch_shape) * (stored + 2 * view.rank * view.long_size)


@functools.cache
def _stored(basis: Basis, a: int, rank: int) -> int:
    arrays = jax.eval_shape(lambda: basis.init(a, rank, jnp.float32))
    return sum(x.size for x in jax.tree.leaves(arrays))


def _some(leaves: Sequence[Leaf], count: int = 3) -> str:
    """The largest of them in words."""
    largest = sorted(leaves, key=lambda leaf: -math.prod(leaf.shape))[:count]
    words = [f"'{leaf.path}' {leaf.shape}" for leaf in largest]
    more = len(leaves) - len(words)
    return ", ".join(words) + (f" and {more} more" if more else "")

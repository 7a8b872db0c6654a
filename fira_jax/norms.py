"""Norms, in float32 or wider whatever the dtype of the entries; their derivatives are finite."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


@jax.custom_jvp
def root(x: jax.Array) -> jax.Array:
    """The square root, whose derivative at 0 counts as 0 instead of infinite.

    What is rooted here are sums of squares: where one is 0, so is the derivative of the sum, and
    infinity times zero would make derivatives through an update NaN.
    """
    return jax.lax.sqrt(x)


@root.defjvp
def _root_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    y = root(*primals)
    positive = y > 0
    return y, jnp.where(positive, tangents[0] / (2 * jnp.where(positive, y, 1)), 0)


def column_energy(x: jax.Array, axis: int = -2) -> jax.Array:
    """Sum of squares along ``axis`` in float32 or wider: ``[..., a, b] -> [..., 1, b]``."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jnp.expand_dims(jnp.sum(jnp.square(wide), axis), -2)


def frobenius_norm(x: jax.Array) -> jax.Array:
    """The norm of each matrix in float32 or wider, ``[*batch, r, b] -> [*batch]``."""
    return root(jnp.sum(column_energy(x), axis=(-2, -1)))


def squared_norm(tree: Any) -> jax.Array:
    """Sum of all squares of a tree, in float32 or wider.

    Args:
      tree: of arrays.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> float(fira_jax.transforms.squared_norm({"w": jnp.ones((2, 3)), "b": jnp.array([2.0])}))
      10.0
    """
    return sum(
        (
            jnp.sum(jnp.square(x.astype(jnp.promote_types(x.dtype, jnp.float32))))
            for x in jax.tree.leaves(tree)
        ),
        jnp.zeros([], jnp.float32),
    )

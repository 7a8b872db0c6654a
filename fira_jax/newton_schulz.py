"""Orthogonal factors and inverse roots by matrix products alone: Newton-Schulz iterations."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from fira_jax.norms import root


# Jitted so that an update that is not inside a jit compiles the loop once, not at every step.
@functools.partial(jax.jit, static_argnames="rounds")
def quintic(x: jax.Array, rounds: int) -> jax.Array:
    r"""Brings the singular values of each matrix ``[..., r, b]`` to about one.

    :math:`X \leftarrow a X + b A X + c A^2 X` with :math:`A = X X^\top`, whose coefficients
    (those of Muon) lift small singular values fast and let large ones swing between 0.7 and 1.2.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    norm = root(jnp.sum(jnp.square(x), axis=(-2, -1), keepdims=True))

    def step(_: jax.typing.ArrayLike, x: jax.Array) -> jax.Array:
        gram = x @ x.mT
        return a * x + (b * gram + c * gram @ gram) @ x

    return jax.lax.fori_loop(0, rounds, step, x / jnp.where(norm > 0, norm, 1))


def coupled(
    y: jax.Array, z: jax.Array, beta: float | jax.Array = 0.5
) -> tuple[jax.Array, jax.Array, jax.Array]:
    r"""One coupled step towards the root and the inverse root of a matrix ``[..., k, k]``.

    :math:`A = 3 I - Z Y,\; Y \leftarrow \beta Y A,\; Z \leftarrow \beta A Z`, from :math:`Y` the
    matrix and :math:`Z = I`. With :math:`\beta = 1/2` they converge to the roots if all eigenvalues
    are above 0 and below 3.

    Returns:
      The new :math:`Y` and :math:`Z`, and how far off they were before, :math:`I - Z Y`.
    """
    eye = jnp.eye(y.shape[-1], dtype=y.dtype)
    off = eye - z @ y
    a = 2 * eye + off
    return beta * y @ a, beta * a @ z, off


def inverse_root(x: jax.Array, steps: int | jax.Array, beta: float | jax.Array = 0.5) -> jax.Array:
    """The inverse root of each positive semidefinite matrix ``[..., k, k]``, by coupled steps."""

    def step(_: jax.typing.ArrayLike, pair: tuple[jax.Array, jax.Array]) -> Any:
        return coupled(pair[0], pair[1], beta)[:2]

    start = x, jnp.broadcast_to(jnp.eye(x.shape[-1], dtype=x.dtype), x.shape)
    return jax.lax.fori_loop(0, steps, step, start)[1]

"""The orthogonal factor of a matrix by products alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fira_jax.norms import root


def newton_schulz(x: jax.Array, rounds: int) -> jax.Array:
    r"""Brings the singular values of each matrix ``[..., r, b]`` to about one.

    :math:`X \leftarrow a X + b A X + c A^2 X` with :math:`A = X X^\top`, whose coefficients
    (those of Muon) lift small singular values fast and let large ones swing between 0.7 and 1.2.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    norm = root(jnp.sum(jnp.square(x), axis=(-2, -1), keepdims=True))
    x = x / jnp.where(norm > 0, norm, 1)
    for _ in range(rounds):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x

"""Normalizing a matrix under several norms at once, without any state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from fira_jax.checks import require_choice, require_count
from fira_jax.newton_schulz import inverse_root, quintic
from fira_jax.norms import root
from fira_jax.trees import map_leaves, stateless

Normalization = Callable[[jax.Array], jax.Array]
"""``[*batch, m, n] -> [*batch, m, n]`` in float32 or wider; a zero matrix stays zero."""

_TINY = 1e-8  # below this share of the largest entry a norm counts as this large
_AXES = {"input": -2, "output": -1}


def multi_normalize(
    *normalizations: Normalization, rounds: jax.typing.ArrayLike = 1
) -> optax.GradientTransformationExtraArgs:
    r"""Applies normalizations in turn, round after round, towards a point that all leave alone.

    .. math::

        X_0 = G / \max |G|, \qquad X_{k+1} = f_K(\dots f_2(f_1(X_k)))

    Computed in float32 or wider. The first division changes nothing in exact arithmetic, since
    normalizations do not see the scale of a matrix; in floating point it makes gradients of any
    size equally good.

    Args:
      *normalizations: :math:`f_1 \dots f_K`, such as :func:`fira_jax.transforms.unit_rms`
        ``("input")``.
      rounds: how often the sequence is gone through.

    Returns:
      A gradient transformation for matrices ``[*batch, m, n]``; give it to
      :func:`fira_jax.on_matrices`.

    Raises:
      ValueError: there is no normalization, or ``rounds`` is below 1.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> from fira_jax.transforms import multi_normalize, unit_rms
      >>> sinkhorn = multi_normalize(unit_rms("input"), unit_rms("output"), rounds=5)
      >>> x, _ = sinkhorn.update(jnp.outer(jnp.arange(1.0, 4.0), jnp.arange(1.0, 6.0)), None)
      >>> bool(jnp.allclose(x, 1.0))  # all ones: rows and columns of root mean square one
      True

    References:
      Scetbon et al., `Gradient Multi-Normalization for Stateless and Scalable LLM Training
      <https://arxiv.org/abs/2502.06742>`_, 2025.
    """
    if not normalizations:
        raise ValueError("multi_normalize needs at least one normalization")
    if not isinstance(rounds, jax.Array) and not rounds >= 1:  # type: ignore[operator]
        raise ValueError(f"rounds must be at least 1, got {rounds}")

    def once(_: Any, x: jax.Array) -> jax.Array:
        for normalize in normalizations:
            x = normalize(x)
        return x

    def all_rounds(matrix: jax.Array) -> jax.Array:
        x = matrix.astype(jnp.promote_types(matrix.dtype, jnp.float32))
        largest = jnp.max(jnp.abs(x), axis=(-1, -2), keepdims=True)
        # One over a subnormal number is infinite.
        usable = largest >= jnp.finfo(x.dtype).tiny
        x = jnp.where(usable, x / jnp.where(usable, largest, 1), 0)
        return jax.lax.fori_loop(0, rounds, once, x).astype(matrix.dtype)

    return stateless(lambda updates: map_leaves(all_rounds, updates))


def unit_rms(over: Literal["input", "output"]) -> Normalization:
    r"""Gives every column, or every row, the root mean square one.

    .. math:: X_{ij} \leftarrow X_{ij} \Big/ \sqrt{\tfrac1m \textstyle\sum_i X_{ij}^2}

    Args:
      over: the axis that the mean goes over: ``"input"`` normalizes what leads to each output unit
        (columns of ``[m, n]``, rows of PyTorch's layout), ``"output"`` what each input unit leads
        to.

    Raises:
      ValueError: unknown ``over``.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> fira_jax.transforms.unit_rms("output")(jnp.array([[3.0, -3.0], [0.5, 0.5]])).tolist()
      [[1.0, -1.0], [1.0, 1.0]]
    """
    require_choice("over", over, ("input", "output"))
    axis = _AXES[over]

    def normalize(x: jax.Array) -> jax.Array:
        return _divide(x, root(jnp.mean(jnp.square(x), axis=axis, keepdims=True)))

    return normalize


def standardize(over: Literal["input", "output"]) -> Normalization:
    """Gives every column, or every row, the mean zero and the standard deviation one.

    One that is constant up to rounding becomes zero.

    Args:
      over: as for :func:`fira_jax.transforms.unit_rms`.

    Raises:
      ValueError: unknown ``over``.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> fira_jax.transforms.standardize("output")(jnp.array([[1.0, 3.0], [7.0, 5.0]])).tolist()
      [[-1.0, 1.0], [1.0, -1.0]]
    """
    require_choice("over", over, ("input", "output"))
    axis, scale = _AXES[over], unit_rms(over)

    def normalize(x: jax.Array) -> jax.Array:
        mean = jnp.mean(x, axis=axis, keepdims=True)
        rounding = 32 * jnp.finfo(x.dtype).eps * jnp.abs(mean)
        centred = x - mean
        varies = jnp.max(jnp.abs(centred), axis=axis, keepdims=True) > rounding
        return scale(jnp.where(varies, centred, 0))

    return normalize


def whiten(ns_steps: int = 10, step_size: jax.typing.ArrayLike = 0.5) -> Normalization:
    r"""Brings all singular values towards one value, by coupled Newton–Schulz steps.

    .. math::

        Y_0 = X X^\top, \quad Z_0 = I, \quad A = 3 I - Z Y, \quad
        Y \leftarrow \beta Y A, \quad Z \leftarrow \beta A Z, \qquad
        Z X \to (X X^\top)^{-1/2} X

    from :math:`X` divided by its Frobenius norm; the result is given that norm back. Products are
    on the shorter side, and the matrix is never factorized.

    Args:
      ns_steps: number of steps.
      step_size: :math:`\beta`. One half converges, and slowly where singular values are small. 0.8
        does not, but lifts small ones much faster: all end within about [0.56, 1.60] of a common
        value.

    Raises:
      ValueError: ``ns_steps`` is below 1.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> x = fira_jax.transforms.whiten(20)(jnp.diag(jnp.array([3.0, 4.0])))
      >>> bool(jnp.allclose(x, jnp.eye(2) * 12.5**0.5, atol=1e-5))  # the norm stays 5
      True
    """
    if not isinstance(ns_steps, jax.Array) and not ns_steps >= 1:
        raise ValueError(f"ns_steps must be at least 1, got {ns_steps}")

    def whitened(x: jax.Array) -> jax.Array:
        return inverse_root(x @ x.mT, ns_steps, jnp.asarray(step_size, x.dtype)) @ x

    def normalize(x: jax.Array) -> jax.Array:
        norm = _frobenius(x)
        x = _divide(x, norm)
        with jax.default_matmul_precision("float32"):
            x = whitened(x) if x.shape[-2] <= x.shape[-1] else whitened(x.mT).mT
        return x * _divide(norm, _frobenius(x))

    return normalize


def orthogonal(ns_steps: int = 5) -> Normalization:
    r"""Gives all directions of a matrix about the same weight, by Muon's iteration.

    .. math::

        X = U \Sigma V^\top \;\to\; \sqrt{\max(m, n)}\; U V^\top

    so that entries of a matrix of full rank have a root mean square of about one. Products only, on
    the shorter side, and a fixed number of them; singular values end between about 0.7 and 1.2 of a
    common value, those that were very small below.

    Args:
      ns_steps: number of steps. Static.

    Raises:
      ValueError: ``ns_steps`` is below 1.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> x = fira_jax.transforms.orthogonal()(jnp.diag(jnp.array([1.0, 2.0, 4.0, 8.0])))
      >>> bool(jnp.all(abs(jnp.diag(x) / 4**0.5 - 0.95) < 0.3))
      True

    References:
      Jordan et al., `Muon <https://kellerjordan.github.io/posts/muon/>`_, 2024.
    """
    require_count("ns_steps", ns_steps)

    def normalize(x: jax.Array) -> jax.Array:
        wide = x.shape[-2] <= x.shape[-1]
        factor = quintic(x, ns_steps) if wide else quintic(x.mT, ns_steps).mT
        return max(x.shape[-2:]) ** 0.5 * factor

    return normalize


def _divide(x: jax.Array, norm: jax.Array) -> jax.Array:
    """``x / norm``, zero where the norm is: divided by the least, derivatives would overflow."""
    return jnp.where(norm > 0, x / jnp.maximum(norm, _TINY), 0)


def _frobenius(x: jax.Array) -> jax.Array:
    return root(jnp.sum(jnp.square(x), axis=(-1, -2), keepdims=True))

"""The inverse empirical Fisher matrix of a window of gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fira_jax.checks import require_count, require_float_dtype
from fira_jax.trees import Params, require_same_leaves, require_same_shape, unbox


class ScaleByMFacState(NamedTuple):
    """State of :func:`scale_by_m_fac`.

    Attributes:
      count: gradients taken into the window, int32 scalar.
      gradients: the last :math:`m` gradients of each parameter, ``[m, *shape]``, in a ring.
      products: their inner products over the whole model, float32 or wider ``[m, m]``.
    """

    count: jax.Array  # type: ignore[assignment]  # as Optax names it
    gradients: Any
    products: jax.Array


def scale_by_m_fac(
    rank: int = 1024,
    damping: jax.typing.ArrayLike = 1e-5,
    *,
    gradient_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies the gradient by the inverse of the empirical Fisher matrix of the last ones.

    .. math::

        F = \lambda I + \frac1m \sum_{i=t-m+1}^{t} g_i g_i^\top, \qquad
        F^{-1} g_t = m \, G^\top (m \lambda I + G G^\top)^{-1} e_t

    over all parameters together; :math:`G \in \mathbb{R}^{m \times d}` holds the last gradients,
    the newest in place :math:`t`, and zeros at first. A step costs :math:`2 m d` multiplications
    and a Cholesky factor of size :math:`m`. A gradient whose square is not finite moves nothing and
    is not remembered.

    Args:
      rank: :math:`m`, gradients in the window. Static.
      damping: :math:`\lambda`.
      gradient_dtype: dtype in which gradients are kept; None for the parameter's.

    Raises:
      TypeError: ``rank`` is not a static int.
      ValueError: ``rank`` is below 1 or ``damping`` not above 0.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> tx = fira_jax.transforms.scale_by_m_fac(rank=1, damping=0.5)
      >>> direction, _ = tx.update(jnp.array([1.0, 2.0]), tx.init(jnp.zeros(2)))
      >>> (5.5 * direction).round(3).tolist()  # (0.5 I + g g') g = 5.5 g
      [1.0, 2.0]

    References:
      Frantar, Kurtic and Alistarh, `M-FAC <https://arxiv.org/abs/2107.03356>`_, 2021. The paper's
      dynamic algorithm unrolls the Sherman–Morrison recursion over the window into triangular
      factors; the closed form here has the same value, and since the gradient is itself in the
      window nothing cancels in it.
    """
    require_count("rank", rank)
    if not isinstance(damping, jax.Array) and not damping > 0:  # type: ignore[operator]
        raise ValueError(f"damping must be above 0, got {damping}")
    if gradient_dtype is not None:
        require_float_dtype("gradient_dtype", gradient_dtype)

    def init(params: Params) -> ScaleByMFacState:
        params = unbox(params)
        wide = jnp.result_type(jnp.float32, *jax.tree.leaves(params))
        gradients = jax.tree.map(
            lambda x: jnp.zeros((rank, *x.shape), gradient_dtype or x.dtype), params
        )
        return ScaleByMFacState(jnp.zeros([], jnp.int32), gradients, jnp.zeros((rank, rank), wide))

    def update(
        updates: optax.Updates,
        state: ScaleByMFacState,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByMFacState]:
        del params, extra_args
        grads, treedef = jax.tree.flatten(updates)
        window, window_def = jax.tree.flatten(state.gradients)
        require_same_leaves(grads, window)
        for g, w in zip(grads, window, strict=True):
            require_same_shape("an update", (rank, *g.shape), w.shape)
        wide, place = state.products.dtype, state.count % rank

        usable = jnp.isfinite(_sum(jnp.sum(jnp.square(g.astype(wide))) for g in grads))
        window = [
            w.at[place].set(jnp.where(usable, g.astype(w.dtype), w[place]))
            for g, w in zip(grads, window, strict=True)
        ]
        row = _sum(
            jnp.tensordot(w, w[place], w.ndim - 1, preferred_element_type=wide) for w in window
        )
        products = state.products.at[place].set(row).at[:, place].set(row)
        weights = jnp.where(usable, rank * _solve(products, rank * damping, place), 0)
        done = [
            jnp.tensordot(weights, w.astype(wide), 1).astype(g.dtype)
            for g, w in zip(grads, window, strict=True)
        ]
        count = jnp.where(usable, optax.safe_increment(state.count), state.count)
        gradients = jax.tree.unflatten(window_def, window)
        return jax.tree.unflatten(treedef, done), ScaleByMFacState(count, gradients, products)

    return optax.GradientTransformationExtraArgs(init, update)


def _solve(products: jax.Array, shift: jax.typing.ArrayLike, place: jax.Array) -> jax.Array:
    """Column ``place`` of the inverse of ``products + shift * I``."""
    size = products.shape[0]
    root = jnp.sqrt(jnp.diagonal(products) + shift)
    # With a unit diagonal gradients of all sizes are equally well resolved. Rounding can push the
    # smallest eigenvalue below zero by this much.
    rounding = size * jnp.finfo(products.dtype).eps
    matrix = products / root / root[:, None]
    matrix = matrix + jnp.diag(shift / jnp.square(root) + rounding)
    factor = jax.scipy.linalg.cho_factor(matrix)
    unit = jax.nn.one_hot(place, size, dtype=products.dtype)
    return jax.scipy.linalg.cho_solve(factor, unit / root) / root


def _sum(terms: Any) -> jax.Array:
    return sum(terms, jnp.zeros([]))

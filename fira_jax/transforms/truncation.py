"""Weights brought back to low rank from time to time while they are trained (TRP)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fira_jax.trees import Params


class TruncatePeriodicallyState(NamedTuple):
    """State of :func:`truncate_periodically`.

    Attributes:
      count: updates done, int32.
    """

    count: jax.Array  # type: ignore[assignment]  # as Optax names it


def truncate_periodically(
    every: int, energy: jax.typing.ArrayLike = 0.98, nuclear_penalty: jax.typing.ArrayLike = 0.0
) -> optax.GradientTransformationExtraArgs:
    r"""Cuts every matrix to its leading singular directions every so many updates.

    .. math::

        W \leftarrow U_k \Sigma_k V_k^\top, \qquad
        k = \min\Bigl\{j : \sum_{i \le j} \sigma_i^2 \ge e \sum_i \sigma_i^2\Bigr\}

    Between, the weights are free. With ``nuclear_penalty`` :math:`\lambda` the kept singular values
    become :math:`\max(\sigma_i - \lambda, 0)`: one proximal step on the nuclear norm, which draws
    the weights towards low rank. After training the matrix has the rank that
    it was cut to last and can be stored as two factors. Put it last in the chain.

    Args:
      every: updates between two truncations, counted from the first: after ``every`` updates.
      energy: :math:`e`, share of the squared norm that must stay, in (0, 1].
      nuclear_penalty: :math:`\lambda`, learning rate included; 0 for the plain method.

    Raises:
      ValueError: ``every`` below 1, or ``update`` without ``params``.

    Example:
      >>> import fira_jax, optax, jax.numpy as jnp
      >>> tx = optax.chain(optax.sgd(0.1), fira_jax.transforms.truncate_periodically(1, 0.9))
      >>> w = jnp.diag(jnp.array([3.0, 0.5]))
      >>> updates, _ = tx.update(jnp.zeros((2, 2)), tx.init(w), w)
      >>> bool(jnp.allclose(w + updates, jnp.diag(jnp.array([3.0, 0.0])), atol=1e-5))
      True

    References:
      Xu et al., `Trained Rank Pruning for Efficient Deep Neural Networks
      <https://arxiv.org/abs/1812.02402>`_ (TRP), 2018, and `TRP: Trained Rank Pruning
      <https://arxiv.org/abs/2004.14566>`_, 2020. Deviation: they step along the subgradient of the
      nuclear norm between truncations, from the singular vectors of the last; here its proximal
      step goes with each truncation, so that no vectors are kept.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")

    def cut(w: jax.Array) -> jax.Array:
        wide = w.astype(jnp.promote_types(w.dtype, jnp.float32))
        left, values, right = jnp.linalg.svd(wide, full_matrices=False)
        before = jnp.cumsum(values**2, -1) - values**2
        kept = before < jnp.asarray(energy) * jnp.sum(values**2, -1, keepdims=True)
        shrunk = jnp.where(kept, jnp.maximum(values - nuclear_penalty, 0), 0)
        return ((left * shrunk[..., None, :]) @ right).astype(w.dtype)

    def init(params: Params) -> TruncatePeriodicallyState:
        del params
        return TruncatePeriodicallyState(jnp.zeros([], jnp.int32))

    def update(
        updates: optax.Updates,
        state: TruncatePeriodicallyState,
        params: Params | None = None,
        **_: Any,
    ) -> tuple[optax.Updates, TruncatePeriodicallyState]:
        if params is None:
            raise ValueError("truncate_periodically needs params: update(grads, state, params)")
        count = optax.safe_increment(state.count)

        def truncated(updates: optax.Updates) -> optax.Updates:
            return jax.tree.map(
                lambda u, w: (cut(w + u.astype(w.dtype)) - w).astype(u.dtype) if w.ndim >= 2 else u,
                updates,
                params,
            )

        new = jax.lax.cond(count % every == 0, truncated, lambda updates: updates, updates)
        return new, TruncatePeriodicallyState(count)

    return optax.GradientTransformationExtraArgs(init, update)

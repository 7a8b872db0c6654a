"""How large a batch should be: the norm test."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fira_jax.checks import require_count
from fira_jax.norms import squared_norm
from fira_jax.trees import Params


class AdaptBatchSizeState(NamedTuple):
    """State of :func:`adapt_batch_size`.

    Attributes:
      batch_size: examples that the next gradient should be averaged over, int32 scalar.
    """

    batch_size: jax.Array


def adapt_batch_size(
    initial: int, maximum: int, eta: jax.typing.ArrayLike = 0.1
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps track of how many examples a gradient needs for its direction to be trusted.

    With :math:`\bar g` the mean gradient of :math:`B` examples and :math:`\sigma^2` the variance of
    one example's, summed over all entries, the norm test asks for

    .. math::

        \frac{\sigma^2}{B} \le \eta^2 \lVert \bar g \rVert^2

    Where it fails, the next batch is as large as the test would have needed,
    :math:`B \leftarrow \lceil \sigma^2 / (\eta^2 \lVert \bar g \rVert^2) \rceil`; batches never
    shrink. Updates pass unchanged: place it first in a chain, where it sees the gradient. The
    variance comes as the extra argument ``gradient_variance`` (see :func:`gradient_variance`), the
    answer is read with ``optax.tree.get(state, "batch_size")``. Since it is state, a training loop
    that follows it resumes exactly. A gradient or variance that is not finite or zero leaves it.

    Args:
      initial: :math:`B` at first. Static.
      maximum: the most that :math:`B` may become. Static.
      eta: :math:`\eta`; the smaller, the larger the batches.

    Raises:
      TypeError: a batch size is not a static int.
      ValueError: an argument is out of range; at ``update``, ``gradient_variance`` is missing.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> tx = fira_jax.transforms.adapt_batch_size(initial=8, maximum=1000, eta=0.5)
      >>> grads = jnp.array([3.0, 4.0])
      >>> _, state = tx.update(grads, tx.init(grads), gradient_variance=100.0)
      >>> int(state.batch_size)  # 100 / (0.25 * 25)
      16

    References:
      Byrd et al., `Sample Size Selection in Optimization Methods for Machine Learning
      <https://doi.org/10.1007/s10107-012-0572-5>`_, 2012; Lau, Liu and Kolar, `AdAdaGrad
      <https://arxiv.org/abs/2402.11215>`_, 2024.
    """
    require_count("initial", initial)
    require_count("maximum", maximum)
    if maximum < initial:
        raise ValueError(f"maximum must be at least initial = {initial}, got {maximum}")
    if not isinstance(eta, jax.Array) and not eta > 0:  # type: ignore[operator]
        raise ValueError(f"eta must be above 0, got {eta}")

    def init(params: Params) -> AdaptBatchSizeState:
        del params
        return AdaptBatchSizeState(jnp.asarray(initial, jnp.int32))

    def update(
        updates: optax.Updates,
        state: AdaptBatchSizeState,
        params: Params | None = None,
        *,
        gradient_variance: jax.typing.ArrayLike | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AdaptBatchSizeState]:
        del params, extra_args
        if gradient_variance is None:
            raise ValueError(
                "adapt_batch_size needs the spread of the examples' gradients: pass "
                "tx.update(grads, state, params, gradient_variance=...)"
            )
        energy = jnp.square(eta) * squared_norm(updates)
        needed = gradient_variance / jnp.where(energy > 0, energy, 1)
        # Compared as floats: a number of examples beyond int32 would wrap around.
        known = jnp.where((energy > 0) & jnp.isfinite(needed), needed, 0)
        larger = jnp.ceil(jnp.minimum(known, maximum)).astype(jnp.int32)
        return updates, AdaptBatchSizeState(jnp.maximum(state.batch_size, larger))

    return optax.GradientTransformationExtraArgs(init, update)


def gradient_variance(squared_norms: jax.Array, mean: Params, examples_each: int) -> jax.Array:
    r"""The variance of one example's gradient, from the gradients of micro-batches.

    .. math::

        \sigma^2 = \frac{b}{J - 1}
        \left( \sum_j \lVert g_j \rVert^2 - J \lVert \bar g \rVert^2 \right)

    for :math:`J` micro-batches of :math:`b` examples: unbiased, and 0 rather than negative where
    rounding leaves nothing. Only norms are needed, so micro-batches can be summed in a loop.

    Args:
      squared_norms: :math:`\lVert g_j \rVert^2`, ``[J]``, see :func:`squared_norm`.
      mean: :math:`\bar g`, a tree.
      examples_each: :math:`b`.

    Raises:
      ValueError: there are fewer than two micro-batches.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> grads = jnp.array([[1.0, 0.0], [3.0, 2.0]])
      >>> norms = jnp.sum(grads**2, axis=1)
      >>> float(fira_jax.transforms.gradient_variance(norms, grads.mean(axis=0), examples_each=1))
      4.0
    """
    count = squared_norms.shape[0]
    if count < 2:
        raise ValueError(f"the variance needs at least two micro-batches, got {count}")
    spread = jnp.sum(squared_norms) - count * squared_norm(mean)
    return jnp.maximum(spread, 0) * examples_each / (count - 1)

"""What a piece with state in the subspace starts from."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fira_jax.dtypes import state_dtype
from fira_jax.low_rank import LowRank
from fira_jax.plan import Leaf
from fira_jax.trees import Params


def coordinates_like(
    low_rank: LowRank, params: Params, dtype: jax.typing.DTypeLike | None
) -> Params:
    """Zeros of the shape each parameter has in the subspace; full-size where not projected.

    Args:
      low_rank: what "low rank" means for this model.
      params: parameters, arrays or abstract.
      dtype: dtype of the zeros; None for each parameter's own, see :func:`state_dtype`.
    """

    def zeros(leaf: Leaf) -> jax.Array | None:
        shape = leaf.shape
        if 0 in shape:
            return None
        if leaf.view is not None:
            shape = (*leaf.view.batch_shape, leaf.view.rank, leaf.view.long_size)
        return jnp.zeros(shape, dtype or state_dtype(leaf.dtype))

    return low_rank.for_each(params, zeros)


def one_minus_power(decay: jax.typing.ArrayLike, count: jax.Array) -> jax.Array:
    """``1 - decay ** count`` without losing digits to cancellation (0.999 in float32 would)."""
    steps = count.astype(jnp.result_type(float))
    if not isinstance(decay, jax.Array):
        if decay == 0:
            return jnp.minimum(steps, 1)
        return -jnp.expm1(steps * float(np.log(decay)))
    log = jnp.log(jnp.where(decay > 0, decay, 1)).astype(steps.dtype)
    return jnp.where(decay > 0, -jnp.expm1(steps * log), jnp.minimum(steps, 1))

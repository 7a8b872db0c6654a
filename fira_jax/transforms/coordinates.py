"""What a piece with state in the subspace starts from."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

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
      dtype: dtype of the zeros; None for each parameter's own.
    """

    def zeros(leaf: Leaf) -> jax.Array | None:
        shape = leaf.shape
        if 0 in shape:
            return None
        if leaf.view is not None:
            shape = (*leaf.view.batch_shape, leaf.view.rank, leaf.view.long_size)
        return jnp.zeros(shape, dtype or leaf.dtype)

    return low_rank.for_each(params, zeros)


def one_minus_power(decay: jax.typing.ArrayLike, count: jax.Array) -> jax.Array:
    """``1 - decay ** count`` without losing digits to cancellation (0.999 in float32 would)."""
    with np.errstate(divide="ignore"):
        log = jnp.log(decay) if isinstance(decay, jax.Array) else np.log(np.asarray(decay, float))
    return -jnp.expm1(count.astype(jnp.result_type(float)) * log)

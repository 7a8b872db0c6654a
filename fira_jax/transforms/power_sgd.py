"""Gradients averaged between devices as two thin factors (PowerSGD)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fira_jax.trees import Params, path_name


class PowerSgdMeanState(NamedTuple):
    """State of :func:`power_sgd_mean`; for parameters sent whole ``optax.MaskedNode``.

    Attributes:
      factors: the last right factors ``[*batch, n, r]``, the same on every device.
      errors: what each device's own gradients lost so far, of the parameters' shapes.
    """

    factors: Any
    errors: Any


def power_sgd_mean(
    axis_name: str, rank: int | Mapping[str, int] = 4, seed: int = 0
) -> optax.GradientTransformationExtraArgs:
    r"""Averages gradients over a mesh axis, sending :math:`r(m + n)` numbers instead of :math:`mn`.

    Each device adds what it lost before to its own gradient, :math:`M = G + E`, and then

    .. math::

        P = \mathrm{orth}\bigl(\mathrm{mean}(M Q)\bigr), \qquad
        Q \leftarrow \mathrm{mean}(M^\top P), \qquad
        \hat G = P Q^\top, \qquad E \leftarrow M - \hat G

    with means over the axis, one power iteration from the last step's :math:`Q`. All devices get
    the same :math:`\hat G`. Use it first in a chain, inside ``jax.shard_map`` or ``jax.pmap``, on
    gradients that were not averaged yet.

    The state differs between devices in ``errors``, of the size of the gradient: its first axis is
    the device's own. Parameters with fewer than two axes, and those for which two factors would
    be no smaller, are averaged as they are.

    Args:
      axis_name: of the mesh axis.
      rank: :math:`r`; or for each parameter's path its own, such as :func:`choose_ranks` finds, a
        parameter not named being sent whole.
      seed: of the first :math:`Q`.

    Raises:
      ValueError: a rank below 1, or a path that no parameter has.

    Example:
      >>> import fira_jax, jax, jax.numpy as jnp
      >>> tx = fira_jax.transforms.power_sgd_mean("devices", rank=1)
      >>> grads = {"w": jnp.ones((1, 4, 6))}  # the first axis is that of devices
      >>> one = lambda g: tx.update(g, tx.init(g))[0]
      >>> mean = jax.vmap(one, axis_name="devices")(grads)
      >>> bool(jnp.allclose(mean["w"], 1.0, atol=1e-5))
      True

    References:
      Vogels et al., `PowerSGD: Practical Low-Rank Gradient Compression for Distributed
      Optimization <https://arxiv.org/abs/1905.13727>`_, 2019. Leading axes of a parameter are a
      stack of matrices here; there, matrices are made by flattening all axes but the first.
    """
    ranks = rank if isinstance(rank, Mapping) else {}
    for value in ranks.values() if isinstance(rank, Mapping) else (rank,):
        if value < 1:
            raise ValueError(f"rank must be at least 1, got {value}")

    def rank_of(path: Any, shape: tuple[int, ...]) -> int | None:
        if len(shape) < 2:
            return None
        *_, m, n = shape
        r = ranks.get(path_name(path)) if isinstance(rank, Mapping) else min(rank, m, n)
        return r if r is not None and r * (m + n) < m * n else None

    def init(params: Params) -> PowerSgdMeanState:
        leaves = jax.tree_util.tree_leaves_with_path(params)
        if unknown := sorted(set(ranks) - {path_name(path) for path, _ in leaves}):
            raise ValueError(f"rank names {', '.join(unknown)}, which is no parameter")

        def factor(path: Any, x: Any) -> Any:
            r = rank_of(path, x.shape)
            if r is None:
                return optax.MaskedNode()
            return jax.random.normal(jax.random.key(seed), (*x.shape[:-2], x.shape[-1], r))

        def error(path: Any, x: Any) -> Any:
            masked = rank_of(path, x.shape) is None
            return optax.MaskedNode() if masked else jnp.zeros(x.shape, jnp.float32)

        map_with_path = jax.tree_util.tree_map_with_path
        return PowerSgdMeanState(map_with_path(factor, params), map_with_path(error, params))

    def update(
        updates: optax.Updates, state: PowerSgdMeanState, params: Params | None = None, **_: Any
    ) -> tuple[optax.Updates, PowerSgdMeanState]:
        del params

        def one(grad: jax.Array, q: Any, error: Any) -> tuple[jax.Array, Any, Any]:
            if isinstance(q, optax.MaskedNode):
                return jax.lax.pmean(grad, axis_name), q, error
            whole = grad.astype(jnp.float32) + error
            p, _ = jnp.linalg.qr(jax.lax.pmean(whole @ q, axis_name))
            q = jax.lax.pmean(jnp.matrix_transpose(whole) @ p, axis_name)
            mean = p @ jnp.matrix_transpose(q)
            return mean.astype(grad.dtype), q, whole - mean

        def masked(x: Any) -> bool:
            return isinstance(x, optax.MaskedNode)

        leaves, treedef = jax.tree.flatten(updates)
        factors = jax.tree.leaves(state.factors, is_leaf=masked)
        errors = jax.tree.leaves(state.errors, is_leaf=masked)
        rows = [one(*row) for row in zip(leaves, factors, errors, strict=True)]
        new, factors, errors = (
            jax.tree.unflatten(treedef, [row[i] for row in rows]) for i in range(3)
        )
        return new, PowerSgdMeanState(factors, errors)

    return optax.GradientTransformationExtraArgs(init, update)

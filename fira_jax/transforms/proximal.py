"""The proximal step that makes gates exactly zero (SoRA)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fira_jax.trees import Params, path_name


class ProximalL1State(NamedTuple):
    """State of :func:`proximal_l1`.

    Attributes:
      count: updates done, int32.
    """

    count: jax.Array  # type: ignore[assignment]  # as Optax names it


def proximal_l1(
    learning_rate: optax.ScalarOrSchedule,
    penalty: jax.typing.ArrayLike,
    names: tuple[str, ...] = ("gate",),
) -> optax.GradientTransformationExtraArgs:
    r"""Ends an optimizer's step for some parameters by shrinking them, down to exactly zero.

    .. math::

        g \leftarrow T_{\eta\lambda}(g + u), \qquad
        T_\tau(x) = \mathrm{sign}(x) \max(|x| - \tau, 0)

    with the optimizer's update :math:`u` and learning rate :math:`\eta`: one step of proximal
    gradient descent on the loss plus :math:`\lambda \lVert g \rVert_1`. Put it last in the chain.

    Args:
      learning_rate: of the optimizer before; a scalar or a schedule.
      penalty: :math:`\lambda`.
      names: parameters whose path ends in one of these; the others pass.

    Raises:
      ValueError: at ``init``, if no parameter has such a name; ``update`` without ``params``.

    Example:
      >>> import fira_jax, optax, jax.numpy as jnp
      >>> tx = optax.chain(optax.sgd(0.1), fira_jax.transforms.proximal_l1(0.1, penalty=1.0))
      >>> params = {"gate": jnp.array([1.0, 0.05])}
      >>> updates, _ = tx.update({"gate": jnp.zeros(2)}, tx.init(params), params)
      >>> [round(x, 2) for x in (params["gate"] + updates["gate"]).tolist()]
      [0.9, 0.0]

    References:
      Ding et al., `Sparse Low-rank Adaptation of Pre-trained Language Models
      <https://arxiv.org/abs/2311.11696>`_ (SoRA), 2023, where the gate stands between LoRA's two
      factors. Their optimizer before the threshold is AdamW; so may it be here.
    """

    def chosen(path: Any) -> bool:
        return path_name(path).rsplit("/", 1)[-1] in names

    def init(params: Params) -> ProximalL1State:
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        if not any(map(chosen, paths)):
            raise ValueError(f"no parameter is named {' or '.join(names)}: {len(paths)} others are")
        return ProximalL1State(jnp.zeros([], jnp.int32))

    def update(
        updates: optax.Updates,
        state: ProximalL1State,
        params: Params | None = None,
        **_: Any,
    ) -> tuple[optax.Updates, ProximalL1State]:
        if params is None:
            raise ValueError("proximal_l1 needs params: call update(grads, state, params)")
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        threshold = jnp.asarray(rate, jnp.float32) * penalty

        def shrink(path: Any, u: jax.Array, p: jax.Array) -> jax.Array:
            if not chosen(path):
                return u
            moved = p.astype(jnp.float32) + u.astype(jnp.float32)
            kept = jnp.sign(moved) * jnp.maximum(jnp.abs(moved) - threshold, 0)
            return (kept - p.astype(jnp.float32)).astype(u.dtype)

        shrunk = jax.tree_util.tree_map_with_path(shrink, updates, params)
        return shrunk, ProximalL1State(optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)

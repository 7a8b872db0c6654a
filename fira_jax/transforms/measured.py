"""Watching a method at work: how much its subspaces catch, and what becomes of the rest."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fira_jax.norms import frobenius_norm
from fira_jax.state_owners import owned_state
from fira_jax.subspace import Subspace
from fira_jax.transforms.residual import residual_norm
from fira_jax.trees import Params, is_leaf, path_name, unbox


class MeasuredState(NamedTuple):
    """State of :func:`measured`.

    Attributes:
      inner: the transformation's own.
      captured_energy: see :class:`Measures`, as all that follow: for each parameter that is
        projected float32 ``[*batch]``, one number a matrix; masked elsewhere.
      residual_ratio: likewise.
      limiter: likewise.
      steps_since_refresh: likewise, int32; -1 before the first step.
    """

    inner: Any
    captured_energy: Any
    residual_ratio: Any
    limiter: Any
    steps_since_refresh: Any


class Measures(NamedTuple):
    r"""What :func:`metrics` says of the last step, of one parameter or of all.

    Attributes:
      captured_energy: :math:`\lVert R \rVert^2 / \lVert G \rVert^2`, the share of the gradient's
        energy inside the subspace, if the basis is orthonormal.
      residual_ratio: norm of the residual's part of the update over that of the subspace's,
        :math:`\lVert s \circ (G - \kappa P R) \rVert / \lVert \alpha N \rVert`; 0 if either part
        is missing.
      limiter: what the residual was multiplied by so that it would not grow suddenly; 1 if it was
        not limited.
      steps_since_refresh: steps since the basis was last due to be replaced.
    """

    captured_energy: jax.Array
    residual_ratio: jax.Array
    limiter: jax.Array
    steps_since_refresh: jax.Array


class Metrics(NamedTuple):
    """What :func:`metrics` returns.

    Attributes:
      parameters: :class:`Measures` for the path of each projected parameter, arrays ``[*batch]``.
      summary: scalars over all matrices: means of the energy and the ratio, the smallest limiter
        and the most steps.
    """

    parameters: dict[str, Measures]
    summary: Measures


def measured(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Lets :func:`metrics` see what a method does; the updates stay the same.

    Wrap it directly around the method: ``optax.MultiSteps(measured(tx), 4)``, not the other way
    round. It costs one more pass over the gradients (their energy) and four numbers a matrix.

    Args:
      tx: a transformation that ends its walk in :func:`fira_jax.project_back`, as all methods with
        a basis do but Trion's kind, which have no residual to watch.

    Raises:
      ValueError: at ``update``, if a parameter is projected that does not come to ``project_back``.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> tx = fira_jax.measured(fira_jax.fira(1e-2, rank=4, update_proj_gap=2))
      >>> grads = {"w": jnp.sin(jnp.arange(128.0)).reshape(8, 16), "b": jnp.ones(16)}
      >>> state = tx.init(grads)
      >>> for _ in range(2):
      ...     _, state = tx.update(grads, state, grads)
      >>> watched = fira_jax.metrics(state)
      >>> list(watched.parameters), int(watched.summary.steps_since_refresh)
      (['w'], 1)
      >>> bool(watched.summary.captured_energy > 0.99)
      True
    """
    inner = optax.with_extra_args_support(tx)

    def init(params: Params) -> MeasuredState:
        params = unbox(params)
        views = iter(leaf.view for leaf in owned_state(tx, params)[0])
        flat, structure = jax.tree.flatten(params, is_leaf=is_leaf)
        shapes = [
            None if view is None else view.batch_shape
            for view in (next(views) if hasattr(x, "shape") else None for x in flat)
        ]

        def full(value: float, dtype: Any = jnp.float32) -> Any:
            return jax.tree.unflatten(
                structure,
                [
                    optax.MaskedNode() if shape is None else jnp.full(shape, value, dtype)
                    for shape in shapes
                ],
            )

        return MeasuredState(inner.init(params), full(0), full(0), full(1), full(-1, jnp.int32))

    def update(
        updates: optax.Updates,
        state: MeasuredState,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, MeasuredState]:
        nodes: dict[int, Subspace] = {}

        def observe(tree: Any) -> None:
            leaves = enumerate(jax.tree.leaves(tree, is_leaf=is_leaf))
            nodes.update({i: x for i, x in leaves if isinstance(x, Subspace)})

        updates, inner_state = inner.update(
            updates, state.inner, params, **extra_args, observe=observe
        )
        steps, structure = jax.tree_util.tree_flatten_with_path(
            state.steps_since_refresh, is_leaf=is_leaf
        )
        rows = []
        for i, (path, before) in enumerate(steps):
            if isinstance(before, optax.MaskedNode):
                rows.append((before,) * len(Measures._fields))
            elif i in nodes:
                rows.append(_measure(nodes[i], before))
            else:
                raise ValueError(
                    f"parameter '{path_name(path)}' is projected but does not come to "
                    "project_back, so there is nothing to measure"
                )
        measures = (jax.tree.unflatten(structure, column) for column in zip(*rows, strict=True))
        return updates, MeasuredState(inner_state, *measures)

    return optax.GradientTransformationExtraArgs(init, update)


def metrics(state: optax.OptState) -> Metrics:
    """Reads off an optimizer's state what :func:`measured` saw at the last step.

    Works inside of ``jit`` too; nothing is computed but the summary.

    Args:
      state: any state with that of a :func:`measured` transformation somewhere in it.

    Returns:
      Measures for each projected parameter, and a summary.

    Raises:
      ValueError: nothing was measured.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> tx = fira_jax.measured(fira_jax.fira(1e-2, rank=4))
      >>> float(fira_jax.metrics(tx.init({"w": jnp.ones((8, 16))})).summary.limiter)
      1.0
    """
    found = [
        x
        for x in jax.tree.leaves(unbox(state), is_leaf=lambda x: isinstance(x, MeasuredState))
        if isinstance(x, MeasuredState)
    ]
    parameters: dict[str, Measures] = {}
    for one in found:
        trees = [jax.tree_util.tree_flatten_with_path(tree)[0] for tree in one[1:]]
        for row in zip(*trees, strict=True):
            parameters[path_name(row[0][0])] = Measures(*(x for _, x in row))
    if not parameters:
        raise ValueError(
            "this optimizer's state holds nothing measured; wrap the method: "
            "fira_jax.measured(fira_jax.fira(...))"
        )
    columns = zip(*parameters.values(), strict=True)
    every = [jnp.concatenate([jnp.ravel(x) for x in column]) for column in columns]
    energy, ratio, limiter, steps = every
    summary = Measures(jnp.mean(energy), jnp.mean(ratio), jnp.min(limiter), jnp.max(steps))
    return Metrics(parameters, summary)


def _measure(node: Subspace, steps: jax.Array) -> tuple[jax.Array, ...]:
    """The numbers of one parameter, each ``[*batch]``."""
    inside, whole = (jnp.sum(x, axis=(-2, -1)) for x in (node.raw_energy, node.energy))
    ratio = jnp.zeros_like(inside)
    if node.core is not None and node.residual_scale is not None:
        ratio = _over(residual_norm(node), jnp.abs(node.scale) * frobenius_norm(node.core))
    limiter = jnp.ones_like(inside) if node.limit is None else node.limit[..., 0, 0]
    numbers = (_over(inside, whole), ratio, limiter)
    since = jnp.where(node.refreshed[..., 0, 0], 0, steps + 1)
    return *(x.astype(jnp.float32) for x in numbers), since


def _over(x: jax.Array, y: jax.Array) -> jax.Array:
    """The quotient, or 0 for nothing over nothing."""
    return jnp.where(y > 0, x / jnp.where(y > 0, y, 1), 0)

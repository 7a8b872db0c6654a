"""What depends on what: found out on the traced program, before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from fira_jax.trees import Params, path_name


def used_entries(f: Callable[..., Any], mapping: Mapping[str, Any], *args: Any) -> set[str]:
    """The entries of ``mapping`` that the result of ``f(mapping, *args)`` depends on."""
    from fira_jax.jax_internals import inputs_used  # noqa: PLC0415  # long to import

    jaxpr = jax.make_jaxpr(f)(mapping, *args).jaxpr
    used = inputs_used(jaxpr, [True] * len(jaxpr.outvars))
    with_paths = jax.tree_util.tree_flatten_with_path(mapping)[0]
    return {
        path[0].key
        for (path, _), is_used in zip(with_paths, used[: len(with_paths)], strict=True)
        if is_used
    }


def require_independent_parameters(tx: optax.GradientTransformation, params: Params) -> None:
    """Raises unless ``tx`` works parameter by parameter.

    Traces one update and follows every new weight and every new array of the state back to the
    gradients and parameters it was computed from. The sizes are not those of ``params``: every
    parameter gets a size of its own, since those of one shape share a refresh, in one loop over
    an array that holds them all, which does not make them depend on each other.

    Args:
      tx: a transformation.
      params: a tree with the structure, ranks and dtypes of the parameters, arrays or abstract.

    Raises:
      ValueError: naming two parameters that meet in one result.
    """
    from fira_jax.jax_internals import inputs_used  # noqa: PLC0415  # long to import

    leaves, treedef = jax.tree.flatten(params)
    probe = jax.tree.unflatten(
        treedef,
        [
            jax.ShapeDtypeStruct((128 * (i + 1),) * len(x.shape), x.dtype)
            for i, x in enumerate(leaves)
        ],
    )
    paths = [path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    state = jax.eval_shape(tx.init, probe)
    # The value is the same for all parameters; what only some chains take must not be missing.
    value = jax.ShapeDtypeStruct((), "float32")

    def update(grads: Params, params: Params, state: Any, value: Any) -> Any:
        extra = optax.with_extra_args_support(tx)
        return extra.update(grads, state, params, value=value)

    closed, out = jax.make_jaxpr(update, return_shape=True)(probe, probe, state, value)
    names = [path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(out)[0]]
    for i, name in enumerate(names):
        used = inputs_used(closed.jaxpr, [j == i for j in range(len(names))])
        both = zip(used[: len(paths)], used[len(paths) : 2 * len(paths)], paths, strict=True)
        owners = [path for grad, param, path in both if grad or param]
        if i < len(paths) and paths[i] not in owners:
            owners.insert(0, paths[i])
        if len(owners) > 1:
            what = f"the update of '{paths[i]}'" if i < len(paths) else f"the state at '{name[2:]}'"
            raise ValueError(
                f"{what} depends on parameter '{owners[1]}' besides '{owners[0]}', expected a "
                "transformation that works parameter by parameter: layer by layer, the gradients "
                "of two parameters never exist together. In place of optax.clip_by_global_norm "
                "give layerwise a clip_norm"
            )

"""Which axes of which parameters form a matrix."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers

from fira_jax.trees import Params, path_name, unbox

_LAST_TWO_AXES = MuonDimensionNumbers(-2, -1)


def match_paths(
    include: str | Sequence[str] = ".*",
    exclude: str | Sequence[str] = (),
    *,
    dimension_numbers: Any = _LAST_TWO_AXES,
) -> Callable[[Params], Params]:
    """Chooses the weights to project by their paths.

    Args:
      include: regular expressions; a parameter of two or more dimensions is projected if one of
        them is found anywhere in its path (``layers/attn/q``). A plain word is a regular
        expression too.
      exclude: regular expressions; a parameter with one of them in its path is left alone.
      dimension_numbers: axes of the chosen parameters. The default reads the last two axes as the
        matrix and all before them as batch axes, which suits stacked layers.

    Returns:
      A callable for ``weight_dimension_numbers``. When called it raises ``ValueError`` if it
      matches no parameter, so that a misspelt pattern cannot go unnoticed.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> params = {"attn": {"q": jnp.zeros((8, 8))}, "embed": jnp.zeros((32, 8))}
      >>> fira_jax.match_paths(include=("attn", "mlp"))(params)["embed"] is None
      True
    """
    included = [re.compile(p) for p in ([include] if isinstance(include, str) else include)]
    excluded = [re.compile(p) for p in ([exclude] if isinstance(exclude, str) else exclude)]

    def choose(params: Params) -> Params:
        params = unbox(params)
        seen: list[str] = []
        chosen: list[str] = []

        def spec(path: Any, x: Any) -> Any:
            name = path_name(path)
            wanted = any(p.search(name) for p in included)
            wanted = wanted and not any(p.search(name) for p in excluded)
            if isinstance(x, optax.MaskedNode):
                if wanted:
                    chosen.append(name)  # elsewhere, but there: the pattern is not misspelt
                return None
            seen.append(name)
            if len(x.shape) < 2 or not wanted:
                return None
            chosen.append(name)
            return dimension_numbers

        tree = jax.tree_util.tree_map_with_path(
            spec, params, is_leaf=lambda x: isinstance(x, optax.MaskedNode)
        )
        if seen and not chosen:
            raise ValueError(
                f"match_paths(include={[p.pattern for p in included]}, "
                f"exclude={[p.pattern for p in excluded]}) matches no parameter of two or more "
                f"dimensions; the paths are: {', '.join(seen)}"
            )
        return tree

    return choose


def specs_of(numbers: Any, params: Params, paths: Sequence[Any]) -> list[Any]:
    """One dimension-number spec, or None, for each leaf path of ``params``."""
    shapes = [
        getattr(x, "shape", ())
        for x in jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
    ]
    if numbers is None:
        return [MuonDimensionNumbers() if len(s) == 2 else None for s in shapes]
    if is_spec(numbers):
        needed = max(*(abs(i) + (i >= 0) for i in _axes(numbers)), 2)
        return [numbers if len(s) >= needed else None for s in shapes]
    if callable(numbers):
        numbers = numbers(params)
    entries = jax.tree_util.tree_flatten_with_path(
        numbers, is_leaf=lambda x: x is None or is_spec(x)
    )[0]
    table = {path_name(path): spec for path, spec in entries}
    return [_lookup(table, path) for path in paths]


def is_spec(x: Any) -> bool:
    """Whether ``x`` is the dimension numbers of one parameter."""
    # Muon's and GaLore's dimension numbers are two classes with the same two fields.
    return isinstance(x, tuple) and getattr(x, "_fields", ()) == ("reduction_axis", "output_axis")


def _axes(spec: Any) -> tuple[int, ...]:
    return tuple(i for x in spec for i in ((x,) if isinstance(x, int) else x))


def _lookup(table: dict[str, Any], path: Sequence[Any]) -> Any:
    """The spec at ``path`` or at the nearest place above it."""
    for end in range(len(path), -1, -1):
        if path_name(path[:end]) in table:
            return table[path_name(path[:end])]
    raise ValueError(
        f"weight_dimension_numbers has no entry for parameter '{path_name(path)}'; use None for "
        "parameters to leave alone"
    )

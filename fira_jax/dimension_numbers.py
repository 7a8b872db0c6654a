"""Which axes of which parameters form a matrix."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers

from fira_jax.trees import Params, is_leaf, path_name, unbox

_LAST_TWO_AXES = MuonDimensionNumbers(-2, -1)

Keys = tuple[str, ...]
"""A place in a tree. Unlike a name, ``("a/b",)`` and ``("a", "b")`` are two."""


class WhereItSaves(MuonDimensionNumbers):
    """Dimension numbers of a parameter that is projected only if its state is then below Adam's."""


def match_paths(
    include: str | Sequence[str] | Mapping[str, Any] = ".*",
    exclude: str | Sequence[str] = (),
    *,
    dimension_numbers: Any = _LAST_TWO_AXES,
) -> Callable[[Params], Params]:
    """Chooses the weights to project by their paths.

    Args:
      include: regular expressions; a parameter of two or more dimensions is projected if one of
        them is found anywhere in its path (``layers/attn/q``). A plain word is a regular
        expression too. A mapping gives each expression dimension numbers of its own, or None for
        "leave alone"; the first that is found in a path decides. Count axes from the end, then
        the same numbers serve a layer and a stack of them.
      exclude: regular expressions; a parameter with one of them in its path is left alone.
      dimension_numbers: axes of the chosen parameters, unless ``include`` is a mapping. The default
        reads the last two axes as the matrix and all before them as batch axes, which suits
        stacked layers.

    Returns:
      A callable for ``weight_dimension_numbers``. When called it raises ``ValueError`` if it
      matches no parameter, or if an expression of a mapping takes none, so that a misspelt pattern
      cannot go unnoticed.

    Raises:
      ValueError: an entry of the mapping is neither dimension numbers nor None.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> params = {"attn": {"q": jnp.zeros((8, 8))}, "embed": jnp.zeros((32, 8))}
      >>> fira_jax.match_paths(include=("attn", "mlp"))(params)["embed"] is None
      True

      Attention whose heads are axes of their own, with any number of layers in front:

      >>> choose = fira_jax.match_paths({r"/[qkv]$": (-3, (-2, -1)), r"/o$": ((-3, -2), -1)})
      >>> choose({"layers": {"q": jnp.zeros((6, 8, 2, 4)), "o": jnp.zeros((6, 2, 4, 8))}})
      {'layers': {'o': MuonDimensionNumbers(reduction_axis=(-3, -2), output_axis=-1), 'q': \
MuonDimensionNumbers(reduction_axis=-3, output_axis=(-2, -1))}}
    """
    by_pattern = isinstance(include, Mapping)
    if not isinstance(include, Mapping):
        include = dict.fromkeys(_several(include), dimension_numbers)
    rules = {re.compile(p): _spec_or_none(p, numbers) for p, numbers in include.items()}
    excluded = [re.compile(p) for p in _several(exclude)]

    def choose(params: Params) -> Params:
        params = arrays_of(params)
        taken = dict.fromkeys(rules, False)
        seen: list[str] = []

        def spec(path: Any, x: Any) -> Any:
            name = path_name(path)
            rule = next((p for p in rules if p.search(name)), None)
            if any(p.search(name) for p in excluded):
                rule = None
            if isinstance(x, optax.MaskedNode):
                if rule is not None:
                    taken[rule] = True  # elsewhere, but there: the pattern is not misspelt
                return None
            seen.append(name)
            numbers = None if rule is None else rules[rule]
            if numbers is not None and len(x.shape) < axes_needed(numbers):
                return None
            if rule is not None:
                taken[rule] = True
            return numbers

        tree = jax.tree_util.tree_map_with_path(spec, params, is_leaf=_is_masked)
        unused = [p.pattern for p, used in taken.items() if not used]
        if seen and (by_pattern or not any(taken.values())) and unused:
            raise ValueError(
                f"match_paths(include={unused if by_pattern else [p.pattern for p in rules]}, "
                f"exclude={[p.pattern for p in excluded]}) matches no parameter of "
                f"{'as many dimensions as it needs' if by_pattern else 'two or more dimensions'}; "
                f"the paths are: {', '.join(seen)}"
            )
        return tree

    return choose


def arrays_of(params: Any) -> Params:
    """The parameters without boxes.

    Raises:
      TypeError: they are a step count: Optax took a choice of parameters for a schedule.
    """
    if isinstance(params, int) or (
        getattr(params, "shape", None) == () and jnp.issubdtype(params.dtype, jnp.integer)
    ):
        raise TypeError(
            "a choice of parameters was called with a step count instead of parameters: "
            "optax.inject_hyperparams takes every callable for a schedule unless told otherwise; "
            "pass it static_args=('rank', 'update_proj_gap', 'weight_dimension_numbers')"
        )
    return unbox(params)


def mask_of(choose: Callable[[Params], Params]) -> Callable[[Params], Params]:
    """The same choice as a mask for ``optax.masked``: True where there are dimension numbers."""

    def mask(params: Params) -> Params:
        chosen = choose(params)
        return jax.tree.map(lambda _, spec: spec is not None, params, chosen, is_leaf=is_leaf)

    return mask


def specs_of(numbers: Any, params: Params, paths: Sequence[Any]) -> list[Any]:
    """One dimension-number spec, or None, for each leaf path of ``params``.

    Raises:
      ValueError: a tree of them lacks a parameter, has a spec where there is none, or has one over
        several parameters of which none has its axes.
    """
    shapes = [getattr(x, "shape", ()) for x in jax.tree.leaves(params, is_leaf=_is_masked)]
    if numbers is None:
        return [MuonDimensionNumbers() if len(s) == 2 else None for s in shapes]
    if is_spec(numbers):
        numbers = as_spec(numbers)
        return [numbers if len(s) >= axes_needed(numbers) else None for s in shapes]
    if callable(numbers):
        numbers = numbers(params)
    entries = jax.tree_util.tree_flatten_with_path(
        numbers, is_leaf=lambda x: x is None or is_spec(x)
    )[0]
    table = {keys_of(path): as_spec(spec) if is_spec(spec) else spec for path, spec in entries}
    places = [keys_of(path) for path in paths]
    _require_places(table, places)
    found, fitting = [], set()
    for keys, shape in zip(places, shapes, strict=True):
        above, spec = _lookup(table, keys)
        if len(above) < len(keys) and is_spec(spec) and len(shape) < axes_needed(spec):
            spec = None  # such as the bias beside a kernel
        else:
            fitting.add(above)
        found.append(spec)
    _require_use(table, places, fitting)
    return found


def is_spec(x: Any) -> bool:
    """Whether ``x`` is the dimension numbers of one parameter."""
    # Muon's and GaLore's dimension numbers are two classes with the same two fields.
    if not isinstance(x, tuple):
        return False
    if getattr(x, "_fields", ()) == ("reduction_axis", "output_axis"):
        return True
    # A plain pair of axes cannot be a tree of specs: axes are no specs.
    return type(x) is tuple and len(x) == 2 and all(map(_are_axes, x))


def as_spec(x: Any) -> Any:
    """The same dimension numbers with named fields."""
    return MuonDimensionNumbers(*x) if type(x) is tuple else x


def axes_needed(spec: Any) -> int:
    """How many axes a parameter must have to be read in this way: two at least."""
    axes = [i for x in spec for i in ((x,) if isinstance(x, int) else x)]
    return max([2, *(abs(i) + (i >= 0) for i in axes)])


def keys_of(path: Sequence[Any]) -> Keys:
    """A place in a tree, whatever its containers are."""
    return tuple(path_name([key]) for key in path)


def _are_axes(x: Any) -> bool:
    if isinstance(x, tuple):
        return bool(x) and all(isinstance(i, int) and not isinstance(i, bool) for i in x)
    return isinstance(x, int) and not isinstance(x, bool)


def _is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def _several(patterns: str | Sequence[str]) -> Sequence[str]:
    return [patterns] if isinstance(patterns, str) else patterns


def _spec_or_none(pattern: str, numbers: Any) -> Any:
    if numbers is not None and not is_spec(numbers):
        raise ValueError(
            "match_paths: expected dimension numbers (reduction_axis, output_axis) or None for "
            f"pattern '{pattern}', got {numbers!r}"
        )
    return as_spec(numbers)


def _lookup(table: dict[Keys, Any], keys: Keys) -> tuple[Keys, Any]:
    """The spec at ``keys`` or at the nearest place above it, and that place."""
    for end in range(len(keys), -1, -1):
        if keys[:end] in table:
            return keys[:end], table[keys[:end]]
    raise ValueError(
        f"weight_dimension_numbers has no entry for parameter '{'/'.join(keys)}'; use None for "
        "parameters to leave alone"
    )


def _require_places(table: dict[Keys, Any], places: Sequence[Keys]) -> None:
    """Every spec stands where a parameter is, or above one."""
    known = {keys[:end]: None for keys in places for end in range(len(keys) + 1)}
    for keys, spec in table.items():
        if spec is None or keys in known:
            continue
        names = ["/".join(x) for x in known if x]
        near = difflib.get_close_matches("/".join(keys), names, n=1, cutoff=0)
        raise ValueError(
            f"weight_dimension_numbers has an entry at '{'/'.join(keys)}', where no parameter is"
            + (f"; did you mean '{near[0]}'?" if near else "")
        )


def _require_use(table: dict[Keys, Any], places: Sequence[Keys], fitting: set[Keys]) -> None:
    """Every spec over several parameters is used for one of them."""
    for above, spec in table.items():
        below = [keys for keys in places if keys[: len(above)] == above]
        if is_spec(spec) and below and above not in fitting:
            raise ValueError(
                f"weight_dimension_numbers has {tuple(spec)} at '{'/'.join(above)}', but no "
                f"parameter below it has these axes: {', '.join('/'.join(x) for x in below)}"
            )

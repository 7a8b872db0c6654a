"""What "low rank" means for a model: which weights, which axes, which rank, which basis."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers

from fira_jax import basis as bases
from fira_jax import refresh as refreshes
from fira_jax.subspace import MatrixView, Params, path_name, unbox

Side = Literal["short", "long", "input", "output"]
"""Which side of a matrix is compressed."""

Rank = int | float | Mapping[str, int | float]
"""One rank for all parameters, or one for each path."""

_LAST_TWO_AXES = MuonDimensionNumbers(-2, -1)


class Leaf(NamedTuple):
    """What will happen to one parameter.

    Attributes:
      path: where it stands in the tree, such as ``layers/attn/q``.
      shape: its shape.
      dtype: its dtype.
      view: how it is read as matrices and at which rank, or None if it is not projected.
    """

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    view: MatrixView | None


@dataclasses.dataclass(frozen=True)
class LowRank:
    r"""What "low rank" means for this model.

    ``optax.chain`` hands every member's ``init`` the full-size parameters, so a transformation
    that keeps state in the subspace has to know the subspace's shape by itself. This is that
    knowledge; give the same object to all of them.

    Args:
      rank: dimension of the subspace; clipped to the shorter side of each matrix (to the compressed
        side if it does not come from the gradient's columns: ``"columns"``, ``"randk"`` and
        ``"haar"``). A float between 0 and 1 is a share of the compressed side, rounded up. A
        mapping from paths (``layers/attn/q``) to such numbers gives every projected parameter its
        own. Static.
      update_proj_gap: steps between two refreshes of the basis. Static.
      scale: :math:`\alpha`, weight of the subspace part of the update; may be traced.
      basis: ``"randomized"`` (range finder, the default), ``"svd"`` (exact), ``"random"``
        (regenerated from the seed, never stored), ``"dct"`` (cosine vectors, only their indices
        are stored), ``"orthonormal"`` (random and orthonormal), ``"columns"`` (random coordinates),
        ``"randk"`` (random entries), ``"haar"`` (block means, the low-pass of Haar wavelets), or
        any :class:`fira_jax.basis.Basis`.
      side: which side of a matrix is compressed. ``"short"`` is the papers' choice (state
        :math:`ar + 2br` for sides :math:`a \le b`), ``"long"`` is ``optax.contrib.galore``'s and
        the cheaper state (:math:`br + 2ar`); square matrices compress the input axis. ``"input"``
        and ``"output"`` compress that side whatever its length.
      weight_dimension_numbers: which axes form the matrix: None (every 2-D parameter), one
        ``optax.contrib.MuonDimensionNumbers`` (or ``GaLoreDimensionNumbers``) for every parameter
        that has the axes, a pytree of them (prefixes count) with None for "leave alone", or a
        callable from parameters to such a pytree, such as :func:`fira_jax.match_paths`. Axes in
        neither entry are batch axes: stacked layers and experts are handled one by one.
      seed: seeds whatever is random in the basis; no key is kept in the state.
      moments: what happens to the moments at a refresh: ``"keep"`` (released code), ``"carry"``
        (re-expressed in the new basis, which must be orthonormal) or ``"reset"`` (they start anew
        and so does the bias correction, with ``refresh="fixed"`` only).
      refresh: when bases are replaced: ``"fixed"`` (all every ``update_proj_gap`` steps),
        ``"staggered"`` (the same number of refreshes spread evenly over the gap), ``"lazy"`` (each
        at a gap of its own, which grows where the basis is stable), a callable
        ``(count, index, total, gap) -> bool`` over arrays, or a :class:`fira_jax.rules.Rule`.
      basis_dtype: dtype of the stored basis; None for the parameter's.
      pieces: into how many matrices of their own each is cut along the compressed side, which they
        must divide. Static.

    Raises:
      TypeError: ``rank`` or ``update_proj_gap`` is not a static integer.
      ValueError: an argument is out of its range.

    Example:
      >>> import fira_jax
      >>> fira_jax.LowRank(rank=128, update_proj_gap=200, scale=0.25).side
      'short'
      >>> fira_jax.LowRank(rank=0)
      Traceback (most recent call last):
        ...
      ValueError: rank must be at least 1, got 0
    """

    rank: Rank = 128
    update_proj_gap: int = 200
    scale: jax.typing.ArrayLike = 0.25
    _: dataclasses.KW_ONLY
    basis: str | bases.Basis = "randomized"
    side: Side = "short"
    weight_dimension_numbers: Any = None
    seed: jax.typing.ArrayLike = 0
    moments: Literal["keep", "carry", "reset"] = "keep"
    refresh: str | refreshes.Schedule | refreshes.Rule = "fixed"
    basis_dtype: jax.typing.DTypeLike | None = None
    pieces: int = 1

    def __post_init__(self) -> None:
        """Checks every argument and resolves names."""
        ranks = (
            {f"rank of '{path}'": rank for path, rank in self.rank.items()}
            if isinstance(self.rank, Mapping)
            else {"rank": self.rank}
        )
        for name, rank in ranks.items():
            if not (isinstance(rank, float) and 0 < rank < 1):
                require_count(name, rank)
        require_count("update_proj_gap", self.update_proj_gap)
        require_count("pieces", self.pieces)
        require_choice("side", self.side, get_args(Side))
        require_choice("moments", self.moments, ("keep", "carry", "reset"))
        basis = bases.resolve(self.basis)
        object.__setattr__(self, "basis", basis)
        object.__setattr__(self, "refresh", refreshes.resolve(self.refresh))
        if self.moments == "carry" and not getattr(basis, "turns", basis.orthonormal):
            raise ValueError(
                "moments='carry' needs a basis of orthonormal vectors that all columns share: in "
                f"another one the moments would grow at every refresh, got basis={basis!r}"
            )
        if self.moments == "carry" and _stores_nothing(basis):
            raise ValueError(
                "moments='carry' needs a stored basis: the one before a refresh is not known "
                f"otherwise, got basis={basis!r}"
            )
        if self.moments == "reset" and self.refresh is not refreshes.fixed:
            raise ValueError(
                "moments='reset' needs refresh='fixed': other rules do not tell the moments when "
                f"to start anew, got refresh={self.refresh!r}"
            )
        if self.basis_dtype is not None:
            require_float_dtype("basis_dtype", self.basis_dtype)

    def leaves(self, params: Params) -> list[Leaf | None]:
        """Decides for each leaf of ``params`` what will happen to it; None at masked places.

        Raises:
          ValueError: dimension numbers do not fit a parameter, or a parameter is neither real nor
            floating point.
        """
        return decide(
            params,
            self.weight_dimension_numbers,
            self.side,
            self.rank,
            self.pieces,
            clip=not getattr(self.basis, "any_rank", False),
        )

    def elsewhere(self, params: Params) -> Any:
        """True for each parameter that is not projected: a mask for ``optax.masked``."""
        plan = iter(self.leaves(params))

        def one(x: Any) -> Any:
            leaf = next(plan)
            return x if leaf is None else leaf.view is None and 0 not in leaf.shape

        return jax.tree.map(one, unbox(params), is_leaf=lambda x: isinstance(x, optax.MaskedNode))


def decide(
    params: Params,
    weight_dimension_numbers: Any,
    side: Side,
    rank: Rank,
    pieces: int = 1,
    *,
    clip: bool = True,
) -> list[Leaf | None]:
    """Which leaves of ``params`` are matrices, and how they are read; None at masked places.

    A rank of 0 stands for methods without a subspace: the whole matrix moves.

    Raises:
      ValueError: dimension numbers do not fit a parameter, or a parameter is neither real nor
        floating point.
    """
    params = unbox(params)
    with_paths = jax.tree_util.tree_flatten_with_path(
        params, is_leaf=lambda x: isinstance(x, optax.MaskedNode)
    )[0]
    specs = _specs(weight_dimension_numbers, params, [path for path, _ in with_paths])
    plan = [
        _leaf(path, x, spec, side, rank, pieces, clip)
        for (path, x), spec in zip(with_paths, specs, strict=True)
    ]
    recorder = _recorder.get()
    if recorder is not None:
        recorder.extend(leaf for leaf in plan if leaf)
    return plan


def _leaf(
    path: Any, x: Any, spec: Any, side: Side, rank: Rank, pieces: int, clip: bool
) -> Leaf | None:
    if isinstance(x, optax.MaskedNode):
        return None
    name = path_name(path)
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise ValueError(f"parameter '{name}' is not an array: {x!r}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"parameter '{name}' with shape {x.shape} has dtype {x.dtype}, expected a real "
            "floating-point dtype; leave it out with optax.masked or optax.partition"
        )
    if spec is None or 0 in x.shape:
        return Leaf(name, tuple(x.shape), x.dtype, None)
    if isinstance(rank, Mapping):
        if name not in rank:
            raise ValueError(
                f"rank has no entry for parameter '{name}' with shape {tuple(x.shape)}, only for: "
                f"{', '.join(rank)}"
            )
        rank = rank[name]
    view = matrix_view(name, x.shape, spec, side, rank, pieces, clip=clip)
    return Leaf(name, tuple(x.shape), x.dtype, view)


def _specs(numbers: Any, params: Params, paths: list[Any]) -> list[Any]:
    """One dimension-number spec, or None, for each leaf path of ``params``."""
    shapes = [
        getattr(x, "shape", ())
        for x in jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
    ]
    if numbers is None:
        return [MuonDimensionNumbers() if len(s) == 2 else None for s in shapes]
    if _is_spec(numbers):
        needed = max(*(abs(i) + (i >= 0) for i in _axes(numbers)), 2)
        return [numbers if len(s) >= needed else None for s in shapes]
    if callable(numbers):
        numbers = numbers(params)
    entries = jax.tree_util.tree_flatten_with_path(
        numbers, is_leaf=lambda x: x is None or _is_spec(x)
    )[0]
    table = {path_name(path): spec for path, spec in entries}
    return [_lookup(table, path) for path in paths]


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


def matrix_view(
    name: str,
    shape: Sequence[int],
    spec: Any,
    side: Side,
    rank: int | float,
    pieces: int = 1,
    *,
    clip: bool = True,
) -> MatrixView:
    """Reads ``shape`` as matrices, with ``rank`` clipped to the shorter side of a piece.

    Unless ``clip`` is False: then only to the compressed side.

    Raises:
      ValueError: naming the parameter, if ``spec`` does not fit its shape.
    """
    if not _is_spec(spec):
        raise ValueError(
            f"parameter '{name}' with shape {tuple(shape)}: expected dimension numbers "
            f"(reduction_axis, output_axis) or None, got {spec!r}"
        )
    reduction, output = ((x,) if isinstance(x, int) else tuple(x) for x in spec)
    ndim = len(shape)
    expected = f"parameter '{name}' with shape {tuple(shape)}: dimension numbers {spec}"
    if not reduction or not output:
        raise ValueError(f"{expected} need at least one reduction and one output axis")
    if any(not -ndim <= i < ndim for i in (*reduction, *output)):
        raise ValueError(f"{expected} name an axis outside its {ndim} dimensions")
    reduction, output = (tuple(i % ndim for i in axes) for axes in (reduction, output))
    if len({*reduction, *output}) != len(reduction) + len(output):
        raise ValueError(f"{expected} name an axis twice")
    batch = tuple(i for i in range(ndim) if i not in reduction and i not in output)
    m, n = (int(np.prod([shape[i] for i in axes])) for axes in (reduction, output))
    compress_input = side == "input" or (
        side != "output" and (m == n or (m < n) == (side == "short"))
    )
    a, b = (m, n) if compress_input else (n, m)
    if a % pieces:
        raise ValueError(
            f"parameter '{name}' with shape {tuple(shape)}: its compressed side of {a} does not "
            f"divide into {pieces} pieces"
        )
    a //= pieces
    rank = min(math.ceil(rank * a) if isinstance(rank, float) else rank, a, b if clip else a)
    return MatrixView(tuple(shape), batch, reduction, output, compress_input, rank, pieces)


def warn_if_nothing_is_projected(plan: Sequence[Leaf | None]) -> None:
    """A tree without matrices is legal (Optax's own tests have it) but seldom what was meant."""
    leaves = [leaf for leaf in plan if leaf]
    if leaves and not any(leaf.view for leaf in leaves):
        warnings.warn(
            f"none of the {len(leaves)} parameters is a matrix, so nothing is projected and the "
            "optimizer works at full size (first parameter: "
            f"'{leaves[0].path}' with shape {leaves[0].shape})",
            stacklevel=4,
        )


def require_count(name: str, value: Any) -> None:
    """Raises an error naming the argument unless ``value`` is a static integer above 0."""
    if isinstance(value, jax.Array):
        raise TypeError(
            f"{name} must be a static int, got a JAX array: with optax.inject_hyperparams "
            "pass static_args=('rank', 'update_proj_gap')"
        )
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def require_float_dtype(name: str, dtype: jax.typing.DTypeLike) -> None:
    """Raises ``ValueError`` naming the argument unless ``dtype`` is a floating-point dtype."""
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"{name} must be a floating-point dtype, got {jnp.dtype(dtype)}")


def require_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises ``ValueError`` naming the argument unless ``value`` is among ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


@contextlib.contextmanager
def recording() -> Iterator[list[Leaf]]:
    """Collects what every ``LowRank`` decides inside the block, through any wrapper around it."""
    record: list[Leaf] = []
    token = _recorder.set(record)
    try:
        yield record
    finally:
        _recorder.reset(token)


_recorder: contextvars.ContextVar[list[Leaf] | None] = contextvars.ContextVar(
    "fira_jax_recorder", default=None
)


def _stores_nothing(basis: bases.Basis) -> bool:
    return jax.eval_shape(lambda: basis.init(256, 256, jnp.float32)) is None


def _is_spec(x: Any) -> bool:
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

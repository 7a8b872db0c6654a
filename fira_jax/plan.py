"""What will happen to each parameter: which are matrices, and how they are read."""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fira_jax.dimension_numbers import WhereItSaves, is_spec, specs_of
from fira_jax.matrix_view import MatrixView
from fira_jax.trees import Params, path_name, unbox

Side = Literal["short", "long", "input", "output"]
"""Which side of a matrix is compressed."""

Rank = int | float | Mapping[str, int | float]
"""One rank for all parameters, or one for each path."""


class Leaf(NamedTuple):
    """What will happen to one parameter.

    Attributes:
      keys: where it stands in the tree, as JAX has it.
      shape: its shape.
      dtype: its dtype.
      view: how it is read as matrices and at which rank, or None if it is not projected.
    """

    keys: tuple[Any, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    view: MatrixView | None

    @property
    def path(self) -> str:
        """The keys as people write them, such as ``layers/attn/q``."""
        return path_name(self.keys)


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
    specs = specs_of(weight_dimension_numbers, params, [path for path, _ in with_paths])
    plan = [
        _leaf(path, x, spec, side, rank, pieces, clip)
        for (path, x), spec in zip(with_paths, specs, strict=True)
    ]
    record(params, plan)
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
        return Leaf(path, tuple(x.shape), x.dtype, None)
    if isinstance(rank, Mapping):
        if name not in rank:
            raise ValueError(
                f"rank has no entry for parameter '{name}' with shape {tuple(x.shape)}, only for: "
                f"{', '.join(rank)}"
            )
        rank = rank[name]
    view = matrix_view(name, x.shape, spec, side, rank, pieces, clip=clip)
    if isinstance(spec, WhereItSaves) and not _saves(view):
        return Leaf(path, tuple(x.shape), x.dtype, None)
    return Leaf(path, tuple(x.shape), x.dtype, view)


def _saves(view: MatrixView) -> bool:
    """Whether a basis and two moments in the subspace take less than two moments outside."""
    a, b, r = view.compressed_size, view.long_size, view.rank
    return a * r + 2 * r * b < 2 * a * b


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
    if not is_spec(spec):
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


class Decision(NamedTuple):
    """What was decided about one tree of parameters.

    Attributes:
      structure: of the tree, which any state of these parameters stands in too.
      leaves: what will happen to each parameter; None at masked places.
    """

    structure: Any
    leaves: tuple[Leaf | None, ...]


@contextlib.contextmanager
def recording() -> Iterator[list[Decision]]:
    """Collects what is decided inside the block, through any wrapper around it."""
    decisions: list[Decision] = []
    token = _decisions.set(decisions)
    try:
        yield decisions
    finally:
        _decisions.reset(token)


def record(params: Params, plan: Sequence[Leaf | None]) -> None:
    """Adds what was decided to the block that is recording, if there is one."""
    decisions = _decisions.get()
    if decisions is not None:
        structure = jax.tree.structure(
            unbox(params), is_leaf=lambda x: isinstance(x, optax.MaskedNode)
        )
        decisions.append(Decision(structure, tuple(plan)))


_decisions: contextvars.ContextVar[list[Decision] | None] = contextvars.ContextVar(
    "fira_jax_decisions", default=None
)

"""What a transformation does to every parameter, and what it costs, before anything runs."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import optax

from fira_jax.matrix_view import MatrixView
from fira_jax.state_owners import owned_state
from fira_jax.trees import Params


@dataclasses.dataclass(frozen=True)
class Row:
    """What happens to one parameter.

    Attributes:
      path: where it stands in the tree.
      shape: its shape.
      view: how it is read as matrices and at which rank (0 for methods without a subspace); None
        if it is not taken as matrices.
      state_bytes: bytes of optimizer state that belong to it.
      adam_bytes: bytes of Adam's two moments in the parameter's dtype.
    """

    path: str
    shape: tuple[int, ...]
    view: MatrixView | None
    state_bytes: int
    adam_bytes: int

    @property
    def saves(self) -> bool:
        """Whether its state is below Adam's."""
        return self.state_bytes < self.adam_bytes


@dataclasses.dataclass(frozen=True)
class Description:
    """What happens to every parameter; ``print`` shows it as a table.

    Attributes:
      rows: one for each parameter.
      state_bytes: all optimizer state, counters included.
      adam_bytes: Adam's two moments for the same parameters.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> table = fira_jax.describe(fira_jax.fira(1e-2, rank=8), {"w": jnp.zeros((64, 256))})
      >>> table.rows[0].view.rank, table.rows[0].state_bytes, table.rows[0].adam_bytes
      (8, 18436, 131072)
    """

    rows: tuple[Row, ...]
    state_bytes: int
    adam_bytes: int

    def __str__(self) -> str:
        """The table, with totals beside Adam's, and a mark where a projection saves nothing."""
        header = ("parameter", "shape", "matrices", "compressed", "rank", "state", "Adam's", "")
        body = [
            (
                row.path,
                shape_in_words(row.shape),
                *_how(row.view),
                *map(bytes_in_words, (row.state_bytes, row.adam_bytes)),
                "" if row.view is None or row.saves else "not below Adam's",
            )
            for row in self.rows
        ]
        widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
        lines = [
            "  ".join(x.ljust(w) for x, w in zip(r, widths, strict=True)) for r in (header, *body)
        ]
        lines.insert(1, "  ".join("-" * w for w in widths[:-1]))
        views = [row.view for row in self.rows if row.view is not None]
        how = "taken as matrices" if views and not any(v.rank for v in views) else "projected"
        share = f" ({self.state_bytes / self.adam_bytes:.1%})" if self.adam_bytes else ""
        state, adam = bytes_in_words(self.state_bytes), bytes_in_words(self.adam_bytes)
        lines.append(
            f"{len(views)} of {len(self.rows)} parameters {how}; optimizer state {state} "
            f"beside Adam's {adam}{share}"
        )
        return "\n".join(line.rstrip() for line in lines)


def describe(tx: optax.GradientTransformation, params: Params) -> Description:
    """Says what ``tx`` does to every parameter and how many bytes of state it keeps.

    Nothing is computed or allocated. Sees through any wrapper (``optax.chain``, ``masked``,
    ``partition``, ``inject_hyperparams`` ...).

    Args:
      tx: a transformation that contains pieces of this library.
      params: parameters, as arrays or as ``jax.ShapeDtypeStruct``.

    Returns:
      A table to print, or to read row by row.

    Raises:
      ValueError: whatever ``tx.init`` would raise for these parameters.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> params = {"mlp": {"up": jnp.zeros((64, 256))}, "norm": jnp.zeros(64)}
      >>> print(fira_jax.describe(fira_jax.fira(1e-2, rank=8), params))
      parameter  shape     matrices  compressed  rank  state     Adam's
      ---------  --------  --------  ----------  ----  --------  ---------
      mlp/up     64 x 256  64 x 256  input 64    8     18.0 KiB  128.0 KiB
      norm       64        -         -           -     512 B     512 B
      1 of 2 parameters projected; optimizer state 18.5 KiB beside Adam's 128.5 KiB (14.4%)
    """
    parameters, owned, _ = owned_state(tx, params)
    state_bytes = dict.fromkeys((leaf.keys for leaf in parameters), 0)
    for item in owned:
        if item.owner is not None:
            state_bytes[item.owner.keys] += _bytes(item.array)
    rows = tuple(
        Row(leaf.path, leaf.shape, leaf.view, state_bytes[leaf.keys], 2 * _bytes(leaf))
        for leaf in parameters
    )
    total = sum(_bytes(item.array) for item in owned)
    return Description(rows, total, sum(row.adam_bytes for row in rows))


def _bytes(x: Any) -> int:
    return math.prod(x.shape) * np.dtype(x.dtype).itemsize


def shape_in_words(shape: tuple[int, ...]) -> str:
    """``(64, 256)`` as ``64 x 256``."""
    return " x ".join(map(str, shape)) or "scalar"


def _how(view: MatrixView | None) -> tuple[str, str, str]:
    if view is None:
        return "-", "-", "-"
    count = math.prod(view.batch_shape)
    matrices = (
        shape_in_words(view.matrix_shape)
        if not view.batch_shape
        else f"{count} of {shape_in_words(view.matrix_shape)}"
    )
    if view.rank == 0:
        return matrices, "-", "-"
    side = "input" if view.compress_input else "output"
    return matrices, f"{side} {view.compressed_size}", str(view.rank)


def bytes_in_words(count: int) -> str:
    """``18432`` as ``18.0 KiB``."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"

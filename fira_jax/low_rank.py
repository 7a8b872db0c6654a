"""What "low rank" means for a model: which weights, which axes, which rank, which basis."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import jax
import numpy as np
import optax

from fira_jax import basis as bases
from fira_jax import refresh as rules
from fira_jax.checks import number, require_choice, require_count, require_float_dtype
from fira_jax.matrix_view import MatrixView
from fira_jax.plan import Leaf, Rank, Side, decide, record
from fira_jax.trees import Params, is_leaf, unbox


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
      update_proj_gap: steps between two refreshes of the basis. Static. A run that goes on with
        another gap keeps the bases it has stored until they are due; one that is not stored, such
        as ``"random"``, is another one at once.
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
        ``(count, index, total, gap) -> bool`` over arrays, or a :class:`fira_jax.refresh.Rule`.
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
    refresh: str | rules.Schedule | rules.Rule = "fixed"
    basis_dtype: jax.typing.DTypeLike | None = None
    pieces: int = 1
    # What the names above stand for, and what was decided before.
    kind: bases.Basis = dataclasses.field(init=False, repr=False, compare=False)
    rule: rules.Rule = dataclasses.field(init=False, repr=False, compare=False)
    _decided: dict[Any, list[Leaf | None]] = dataclasses.field(
        init=False, repr=False, compare=False
    )

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
        object.__setattr__(self, "scale", number("scale", self.scale))
        require_choice("side", self.side, get_args(Side))
        require_choice("moments", self.moments, ("keep", "carry", "reset"))
        basis = bases.resolve(self.basis)
        rule = rules.resolve(self.refresh)
        for name, value in (("basis", basis), ("kind", basis), ("refresh", rule), ("rule", rule)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_decided", {})
        if self.moments == "carry" and not basis.turns:
            raise ValueError(
                "moments='carry' needs a basis of orthonormal vectors that all columns share: in "
                f"another one the moments would grow at every refresh, got basis={basis!r}"
            )
        if self.moments == "carry" and not basis.stores():
            raise ValueError(
                "moments='carry' needs a stored basis: the one before a refresh is not known "
                f"otherwise, got basis={basis!r}"
            )
        if self.moments == "reset" and rule != rules.FIXED:
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
        # Every piece of a chain asks for the same tree: it is decided once.
        leaves, structure = jax.tree.flatten(unbox(params), is_leaf=is_leaf)
        shapes = tuple((getattr(x, "shape", None), getattr(x, "dtype", None)) for x in leaves)
        try:
            known = self._decided.get((structure, shapes))
        except TypeError:  # what a user's own container holds need not be hashable
            return self._decide(params)
        if known is None:
            known = self._decided[structure, shapes] = self._decide(params)
        else:
            record(params, known)
        return known

    def _decide(self, params: Params) -> list[Leaf | None]:
        return decide(
            params,
            self.weight_dimension_numbers,
            self.side,
            self.rank,
            self.pieces,
            clip=not self.kind.any_rank,
        )

    def for_each(self, params: Params, make: Callable[[Leaf], Any]) -> Any:
        """A tree of what ``make`` gives for each parameter; masked where that is None."""
        plan = iter(self.leaves(params))

        def one(_: Any) -> Any:
            leaf = next(plan)
            made = None if leaf is None else make(leaf)
            return optax.MaskedNode() if made is None else made

        return jax.tree.map(one, unbox(params), is_leaf=is_leaf)

    def for_each_matrix(self, params: Params, make: Callable[[MatrixView, np.dtype], Any]) -> Any:
        """The same of the view and the dtype of each projected parameter; masked elsewhere."""
        return self.for_each(params, lambda x: make(x.view, x.dtype) if x.view else None)

    def elsewhere(self, params: Params) -> Any:
        """True for each parameter that is not projected: a mask for ``optax.masked``."""
        return self.for_each(params, lambda leaf: leaf.view is None and 0 not in leaf.shape)

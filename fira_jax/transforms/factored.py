"""A second moment of the whole matrix in two vectors, from a first moment in the subspace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fira_jax.checks import decay, epsilon, require_float_dtype
from fira_jax.low_rank import LowRank
from fira_jax.matrix_view import MatrixView
from fira_jax.norms import column_energy, root
from fira_jax.sharding.explicit import on_any_mesh
from fira_jax.subspace import Subspace
from fira_jax.transforms.coordinates import coordinates_like, one_minus_power
from fira_jax.trees import Params, is_leaf, map_leaves


class ProjectBackByFactorsState(NamedTuple):
    """State of :func:`project_back_by_factors`.

    Attributes:
      count: steps taken, int32 scalar.
      mu: first moments in the subspace, ``[*batch, r, b]``; ``optax.MaskedNode`` for parameters
        that are not projected, here and below.
      rows: second moments along the compressed side, ``[*batch, a]``.
      columns: second moments along the other side, ``[*batch, b]``.
    """

    count: jax.Array  # type: ignore[assignment]  # as Optax names it
    mu: Any
    rows: Any
    columns: Any


@on_any_mesh
def project_back_by_factors(
    low_rank: LowRank,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-6,
    *,
    mu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""ProjFactor: lifts a momentum kept in the subspace and divides it at full size.

    .. math::

        M &\leftarrow \beta_1 M + (1 - \beta_1) R, \qquad H = \alpha P R \\
        p_i &\leftarrow \beta_2 p_i + (1 - \beta_2) \textstyle\sum_j H_{ij}^2, \qquad
        q_j \leftarrow \beta_2 q_j + (1 - \beta_2) \textstyle\sum_i H_{ij}^2 \\
        U &= c\, \frac{\alpha P M}{\sqrt{p q^\top / \sum p} + \epsilon}

    The second moment is Adafactor's, of the gradient as the subspace sees it (not of its
    coordinates), but :math:`H` is not formed: both sums follow from :math:`R R^\top` and
    :math:`P^\top P`. Takes the place of :func:`fira_jax.project_back`, since what it does happens
    at full size; :math:`\alpha` cancels but for :math:`\epsilon`. Plain arrays pass unchanged. With
    ``moments="reset"`` the first moment starts anew at a refresh.

    Args:
      low_rank: what "low rank" means for this model. Its pieces share the factors: :math:`p` is as
        long as all of them.
      b1: :math:`\beta_1`.
      b2: :math:`\beta_2`.
      eps: :math:`\epsilon`.
      mu_dtype: dtype in which the first moment is stored; None for the parameter's.

    Raises:
      ValueError: ``low_rank.moments`` is ``"carry"``, or a dtype is not floating point.

    Example:
      >>> import fira_jax, jax.numpy as jnp, optax
      >>> low_rank = fira_jax.LowRank(rank=2, basis="random")
      >>> tx = optax.chain(
      ...     fira_jax.low_rank_project(low_rank), fira_jax.project_back_by_factors(low_rank)
      ... )
      >>> state = tx.init({"w": jnp.ones((8, 16))})
      >>> state[1].rows["w"].shape, state[1].columns["w"].shape
      ((8,), (16,))

    References:
      Wang et al., `VLoRP and ProjFactor <https://arxiv.org/abs/2505.01744>`_, 2025, as released:
      :math:`c = \sqrt{1 - \beta_2^t} / (1 - \beta_1^t)`.
    """
    if low_rank.moments == "carry":
        raise ValueError("project_back_by_factors has moments='keep' and 'reset', got 'carry'")
    b1, b2, eps = decay("b1", b1), decay("b2", b2), epsilon("eps", eps)
    if mu_dtype is not None:
        require_float_dtype("mu_dtype", mu_dtype)

    def init(params: Params) -> ProjectBackByFactorsState:
        def zeros(length: Callable[[MatrixView], int]) -> Any:
            def one(view: MatrixView, dtype: Any) -> jax.Array:
                batch = [view.shape[i] for i in view.batch_axes]
                return jnp.zeros((*batch, length(view)), jnp.promote_types(dtype, jnp.float32))

            return low_rank.for_each_matrix(params, one)

        rows = zeros(lambda view: view.compressed_size * view.pieces)
        mu = jax.tree.map(
            lambda row, x: row if isinstance(row, optax.MaskedNode) else x,
            rows,
            coordinates_like(low_rank, params, mu_dtype),
            is_leaf=is_leaf,
        )
        return ProjectBackByFactorsState(
            jnp.zeros([], jnp.int32), mu, rows, zeros(lambda view: view.long_size)
        )

    def update(
        updates: optax.Updates,
        state: ProjectBackByFactorsState,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ProjectBackByFactorsState]:
        del params, extra_args
        age = count = optax.safe_increment(state.count)
        if low_rank.moments == "reset":
            age = state.count % low_rank.update_proj_gap + 1
        correction = root(one_minus_power(b2, count)) / one_minus_power(b1, age)

        def step(node: Any, mu: Any, rows: Any, columns: Any) -> tuple[Any, Any, Any, Any]:
            wide, view = node.raw.dtype, node.view
            fresh = low_rank.moments == "reset" and age == 1
            m = jnp.where(fresh, 0, mu.astype(wide))
            m = jnp.asarray(b1, wide) * m + jnp.asarray(1 - b1, wide) * node.raw
            row, column = _energies(node)
            rows = jnp.asarray(b2, wide) * rows + jnp.asarray(1 - b2, wide) * row
            columns = jnp.asarray(b2, wide) * columns + jnp.asarray(1 - b2, wide) * column

            total = jnp.sum(columns, axis=-1, keepdims=True)  # that of the rows is the same
            # Rooted first: the derivative of a quotient squares what it is divided by.
            p = root(rows) / jnp.where(total > 0, root(total), 1)
            p = p.reshape(*view.batch_shape, view.compressed_size, 1)
            q = root(columns)[..., None, :]
            q = q if view.pieces == 1 else q[..., None, :, :]
            lifted = view.lift(node.basis, correction.astype(wide) * node.scale * m)
            denominator = view.canonical(p * q) + jnp.asarray(eps, wide)
            update = (lifted / denominator).astype(node.matrix.dtype)
            return view.from_matrix(update), m.astype(mu.dtype), rows, columns

        updates, mu, rows, columns = map_leaves(step, updates, *state[1:])
        return updates, ProjectBackByFactorsState(count, mu, rows, columns)

    return optax.GradientTransformationExtraArgs(init, update)


def _energies(node: Subspace) -> tuple[jax.Array, jax.Array]:
    r"""Sums of squares of :math:`\alpha P R` along both axes, over all pieces of a matrix."""
    basis, raw, view = node.basis, node.raw, node.view
    if isinstance(basis, jax.Array):
        basis = basis.astype(raw.dtype)
        rows = jnp.sum((basis @ (raw @ raw.mT)) * basis, axis=-1)
        columns = jnp.sum(raw * ((basis.mT @ basis) @ raw), axis=-2)
    else:
        lifted = basis.lift(raw)
        rows, columns = (column_energy(lifted, axis)[..., 0, :] for axis in (-1, -2))
    if view.pieces > 1:
        rows = rows.reshape(*rows.shape[:-2], -1)
        columns = jnp.sum(columns, axis=-2)
    weight = jnp.square(node.scale)
    return weight * jnp.maximum(rows, 0), weight * jnp.maximum(columns, 0)

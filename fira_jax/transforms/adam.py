"""Adam inside the subspace as released, and outside of it as in the textbook."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fira_jax.checks import decay, epsilon, require_choice, require_float_dtype
from fira_jax.dtypes import state_dtype
from fira_jax.low_rank import LowRank
from fira_jax.norms import root
from fira_jax.sharding.explicit import on_any_mesh
from fira_jax.subspace import Subspace
from fira_jax.transforms.coordinates import coordinates_like, one_minus_power
from fira_jax.trees import Params, map_leaves, require_same_shape, unbox


class AdamInSubspaceState(NamedTuple):
    """State of :func:`scale_by_adam_in_subspace`.

    Attributes:
      count: steps taken, int32 scalar.
      mu: first moments, ``[*batch, r, b]`` for projected parameters, else the parameter's shape.
      nu: second moments, of the same shapes.
    """

    count: jax.Array  # type: ignore[assignment]  # as Optax names it
    mu: Any
    nu: Any


@on_any_mesh
def scale_by_adam_in_subspace(
    low_rank: LowRank,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-6,
    *,
    bias_correction: Literal["outside", "inside", "none"] = "outside",
    carry: Literal["raw", "central"] = "raw",
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam on the coordinates :math:`R` of projected gradients, and on all other gradients.

    .. math::

        M \leftarrow \beta_1 M + (1-\beta_1) R, \quad
        V \leftarrow \beta_2 V + (1-\beta_2) R^2, \quad
        N = \frac{M}{\sqrt V + \epsilon}, \quad
        c = \frac{\sqrt{1-\beta_2^t}}{1-\beta_1^t}

    With ``bias_correction="outside"``, as in the released GaLore, Fira and APOLLO, :math:`c`
    multiplies the whole step, so :math:`\epsilon` is added to the uncorrected :math:`\sqrt V`, and
    the residual scale and the limiter see the uncorrected norm of :math:`N`. With ``"inside"``
    (textbook Adam, and the papers' algorithms) :math:`N` itself is corrected and :math:`c = 1`.

    Args:
      low_rank: what "low rank" means for this model.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      bias_correction: ``"outside"``, ``"inside"`` or ``"none"``.
      carry: what of the second moment is carried into a new basis, if ``low_rank.moments`` says so:
        ``"raw"`` or ``"central"``, see below.
      mu_dtype: dtype in which the first moment is stored; None for the parameter's, or float32 if
        that is float16.
      nu_dtype: dtype in which the second moment is stored; likewise.

    Raises:
      ValueError: unknown ``bias_correction`` or ``carry``, a decay that is not at least 0 and below
        1, or a dtype that is not floating point.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> adam = fira_jax.scale_by_adam_in_subspace(fira_jax.LowRank(rank=2))
      >>> adam.init({"w": jnp.ones((8, 16)), "b": jnp.ones(16)}).mu["w"].shape
      (2, 16)

    References:
      Kingma and Ba, `Adam <https://arxiv.org/abs/1412.6980>`_, 2014; Zhao et al., `GaLore
      <https://arxiv.org/abs/2403.03507>`_, 2024, algorithm 2. A carried first moment turns with the
      basis, :math:`M \leftarrow T M` with :math:`T = P_{new}^\top P_{old}`. Of the second,
      ``"raw"`` takes the squared overlap, :math:`V \leftarrow (T \circ T) V`, which keeps it
      non-negative; ``"central"`` does so with the variance about the mean only, and turns the mean
      itself (Robert et al., `LDAdam <https://arxiv.org/abs/2410.16103>`_, 2024):
      :math:`\hat V \leftarrow | (T \circ T) (\hat V - \hat M^2) + (T \hat M)^2 |`, with hats for
      bias-corrected moments.
    """
    require_choice("bias_correction", bias_correction, ("outside", "inside", "none"))
    require_choice("carry", carry, ("raw", "central"))
    b1, b2, eps = decay("b1", b1), decay("b2", b2), epsilon("eps", eps)
    _require_dtypes(mu_dtype, nu_dtype)

    def init(params: Params) -> AdamInSubspaceState:
        return AdamInSubspaceState(
            jnp.zeros([], jnp.int32),
            coordinates_like(low_rank, params, mu_dtype),
            coordinates_like(low_rank, params, nu_dtype),
        )

    def update(
        updates: optax.Updates,
        state: AdamInSubspaceState,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AdamInSubspaceState]:
        del params, extra_args
        count = optax.safe_increment(state.count)
        outside = inside = one_minus_power(b1, count), one_minus_power(b2, count)
        if low_rank.moments == "reset":  # the subspace's moments count from the last refresh
            age = state.count % low_rank.update_proj_gap + 1
            inside = one_minus_power(b1, age), one_minus_power(b2, age)
        before = None
        if carry == "central":
            before = one_minus_power(b1, state.count), one_minus_power(b2, state.count)

        def step(leaf: Any, mu: jax.Array, nu: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
            node = leaf if isinstance(leaf, Subspace) else None
            grad = leaf if node is None else node.raw
            shape = leaf.shape if node is None else node.view.shape
            if node is None and mu.ndim == grad.ndim and mu.shape != grad.shape:
                raise ValueError(
                    f"an update of shape {shape} meets moments of shape {mu.shape}, which are those"
                    " of its coordinates: put fira_jax.low_rank_project(low_rank) in front"
                )
            require_same_shape(f"an update of shape {shape}", grad.shape, mu.shape)
            wide = jnp.promote_types(grad.dtype, jnp.float32)
            grad, m, v = (x.astype(wide) for x in (grad, mu, nu))
            if node is not None and low_rank.moments == "reset":
                m, v = (jnp.where(age == 1, 0, x) for x in (m, v))
            elif node is not None and node.rotation is not None:
                m, v = _carry(node.rotation, node.refreshed, m, v, before)
            m, v = _averages(grad, m, v, b1, b2)
            corrections = inside if node is not None else outside
            core, denominator, correction = _direction(m, v, corrections, eps, bias_correction)
            stored = m.astype(mu.dtype), v.astype(nu.dtype)
            if node is None:
                return (correction * core).astype(leaf.dtype), *stored
            changes = {"core": core.astype(wide), "denominator": denominator.astype(wide)}
            return node.replace(step_scale=node.step_scale * correction, **changes), *stored

        updates, mu, nu = map_leaves(step, updates, state.mu, state.nu)
        return updates, AdamInSubspaceState(count, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


def scale_by_adam(
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    *,
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """``optax.scale_by_adam`` for what is not projected, computed in float32 or wider.

    Its state has the structure of Optax's, keeps its dtypes, and is float32 for float16 parameters.
    Optax's own cannot be traced under strict promotion, and its derivative at 0 is not finite.
    """
    b1, b2, eps = decay("b1", b1), decay("b2", b2), epsilon("eps", eps)
    _require_dtypes(mu_dtype, nu_dtype)

    def init(params: Params) -> optax.ScaleByAdamState:
        def zeros(dtype: jax.typing.DTypeLike | None) -> Any:
            return jax.tree.map(
                lambda x: jnp.zeros(x.shape, dtype or state_dtype(x.dtype)), unbox(params)
            )

        return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), zeros(mu_dtype), zeros(nu_dtype))

    def update(
        updates: optax.Updates,
        state: optax.ScaleByAdamState,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.ScaleByAdamState]:
        del params, extra_args
        count = optax.safe_increment(state.count)
        of_first, of_second = (one_minus_power(x, count) for x in (b1, b2))

        def step(leaf: jax.Array, mu: jax.Array, nu: jax.Array) -> tuple[jax.Array, ...]:
            require_same_shape(f"an update of shape {leaf.shape}", leaf.shape, mu.shape)
            wide = jnp.promote_types(leaf.dtype, jnp.float32)
            grad, m, v = (x.astype(wide) for x in (leaf, mu, nu))
            m, v = _averages(grad, m, v, b1, b2)
            update, _, _ = _direction(m, v, (of_first, of_second), eps, "inside")
            return update.astype(leaf.dtype), m.astype(mu.dtype), v.astype(nu.dtype)

        updates, mu, nu = map_leaves(step, updates, state.mu, state.nu)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


def _averages(
    grad: jax.Array, m: jax.Array, v: jax.Array, b1: jax.typing.ArrayLike, b2: jax.typing.ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Both moments after a gradient of their dtype."""
    wide = grad.dtype
    m = jnp.asarray(b1, wide) * m + jnp.asarray(1 - b1, wide) * grad
    return m, jnp.asarray(b2, wide) * v + jnp.asarray(1 - b2, wide) * jnp.square(grad)


def _direction(
    m: jax.Array,
    v: jax.Array,
    corrections: tuple[jax.Array, jax.Array],
    eps: jax.typing.ArrayLike,
    bias_correction: str,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Adam's direction, what it was divided by, and the correction of the whole step."""
    wide = m.dtype
    small, step = jnp.asarray(eps, wide), jnp.ones([], wide)
    first, second = corrections
    if bias_correction == "inside":
        m, v = m / first.astype(wide), v / second.astype(wide)
    elif bias_correction == "outside":
        step = (jnp.sqrt(second) / first).astype(wide)
    denominator = root(v) + small
    return m / denominator, denominator, step


def _require_dtypes(mu_dtype: Any, nu_dtype: Any) -> None:
    for name, dtype in (("mu_dtype", mu_dtype), ("nu_dtype", nu_dtype)):
        if dtype is not None:
            require_float_dtype(name, dtype)


# Jitted so that an update that is not inside a jit compiles the choice once, not at every step.
@jax.jit
def _carry(
    turn: jax.Array,
    refreshed: jax.Array,
    m: jax.Array,
    v: jax.Array,
    corrections: tuple[jax.Array, jax.Array] | None,
) -> tuple[jax.Array, jax.Array]:
    """The moments in the coordinates of the new basis.

    With the ``corrections`` of their bias, the second moment is carried by parts: the variance
    and the mean.
    """

    def carried() -> tuple[jax.Array, jax.Array]:
        if corrections is None:
            return turn @ m, jnp.square(turn) @ v
        # Before the first step there are no moments to correct.
        of_m, of_v = (jnp.where(x > 0, x, 1).astype(m.dtype) for x in corrections)
        mean, second = m / of_m, v / of_v
        variance = jnp.square(turn) @ (second - jnp.square(mean))
        return turn @ m, of_v * jnp.abs(variance + jnp.square(turn @ mean))

    return jax.lax.cond(jnp.any(refreshed), carried, lambda: (m, v))

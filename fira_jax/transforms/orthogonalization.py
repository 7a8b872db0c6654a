"""The orthogonal factor of what is in the subspace."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from fira_jax.checks import require_choice, require_count
from fira_jax.newton_schulz import quintic
from fira_jax.sharding.explicit import on_any_mesh
from fira_jax.subspace import Subspace
from fira_jax.trees import on_nodes


@on_any_mesh
def orthogonalize(
    factor: Literal["newton_schulz", "svd"] = "newton_schulz",
    *,
    ns_steps: int = 5,
    size: Literal["muon", "rms", "none"] = "muon",
) -> optax.GradientTransformationExtraArgs:
    r"""Gives all directions of the core the same weight.

    .. math::

        N = U \Sigma V^\top \;\to\; N \leftarrow s\, U V^\top

    A direction without any weight stays without. Keeps no state.

    Args:
      factor: ``"svd"`` for the exact factor; ``"newton_schulz"`` for Muon's quintic iteration,
        which needs products only and leaves singular values between 0.7 and 1.2, small ones below.
      ns_steps: rounds of that iteration. Static.
      size: :math:`s` for a weight from :math:`m` inputs to :math:`n` outputs: ``"muon"`` for
        :math:`\sqrt{\max(1, n / m)}`, ``"rms"`` for :math:`0.2 \sqrt{\max(m, n)}`, which makes
        steps of full rank as large as Adam's usual ones, ``"none"`` for 1.

    Raises:
      ValueError: unknown ``factor`` or ``size``.

    Example:
      >>> import fira_jax, jax.numpy as jnp, optax
      >>> tx = optax.chain(
      ...     fira_jax.low_rank_project(fira_jax.LowRank(rank=2, scale=1.0)),
      ...     fira_jax.transforms.orthogonalize("svd", size="none"),
      ...     fira_jax.project_back(),
      ... )
      >>> grads = {"w": jnp.diag(jnp.array([4.0, 3.0, 2.0, 1.0]))}
      >>> updates, _ = tx.update(grads, tx.init(grads))
      >>> jnp.round(jnp.abs(jnp.diag(updates["w"])), 3).tolist()
      [1.0, 1.0, 0.0, 0.0]

    References:
      Jordan et al., `Muon <https://kellerjordan.github.io/posts/muon/>`_, 2024; Liu et al., `Muon
      is Scalable for LLM Training <https://arxiv.org/abs/2502.16982>`_, 2025, for ``"rms"``.
    """
    require_choice("factor", factor, ("newton_schulz", "svd"))
    require_count("ns_steps", ns_steps)
    require_choice("size", size, ("muon", "rms", "none"))

    def replace(node: Subspace) -> Subspace:
        if node.core is None:
            return node
        m, n = node.view.matrix_shape
        scales = {"muon": max(1.0, n / m) ** 0.5, "rms": 0.2 * max(m, n) ** 0.5, "none": 1.0}
        exact = factor == "svd"
        core = polar(node.core) if exact else quintic(node.core, ns_steps)
        return node.replace(core=scales[size] * core)

    return on_nodes(replace)


@jax.custom_jvp
def polar(x: jax.Array) -> jax.Array:
    r"""The factor :math:`U V^\top` of each matrix ``[..., r, b]``; zero in its null space."""
    u, _, vt = _directions(x)
    return u @ vt


@polar.defjvp
def _polar_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> Any:
    """Its derivative where there is one, and none in the null space.

    That of a singular value decomposition, which JAX would take, divides by differences of singular
    values: 0/0 where two are equal, though their product has a derivative there.
    """
    u, values, vt = _directions(primals[0])
    change, there = tangents[0], values > 0
    inverse = jnp.where(there, 1 / jnp.where(there, values, 1), 0)
    inside = u.mT @ change @ vt.mT
    both = there[..., :, None] & there[..., None, :]
    sums = values[..., :, None] + values[..., None, :]
    turn = jnp.where(both, (inside - inside.mT) / jnp.where(both, sums, 1), 0)
    left = u @ (inverse[..., None] * (u.mT @ change - inside @ vt))
    right = ((change @ vt.mT - u @ inside) * inverse[..., None, :]) @ vt
    return u @ vt, u @ turn @ vt + left + right


def _directions(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``U``, the singular values and ``V^T``, all zero in the null space."""
    u, s, vt = jnp.linalg.svd(x, full_matrices=False)
    rounding = max(x.shape[-2:]) * jnp.finfo(x.dtype).eps
    there = s > rounding * jnp.max(s, axis=-1, keepdims=True)
    kept = there.astype(x.dtype)
    return u * kept[..., None, :], s * kept, vt * kept[..., None]

"""Gradients of pairs of trained low-rank factors, whose product is what matters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fira_jax.trees import Params, is_leaf, path_name, require_same_leaves, unbox

Pair = tuple[jax.Array, jax.Array]
"""Factors ``[*batch, m, r]`` and ``[*batch, r, n]``, or their gradients."""


def adjust_lora_gradients(
    scaling: float, *, names: tuple[str, str] = ("lora_a", "lora_b")
) -> optax.GradientTransformationExtraArgs:
    r"""Replaces the gradients of factors by those that move their product best.

    With :math:`g` the gradient of :math:`W = W_0 + s A B`, LoRA's gradients are :math:`g_A = s g
    B^\top` and :math:`g_B = s A^\top g`. These move :math:`W` nearest to :math:`g`:

    .. math::

        \hat g_A = \tfrac{1}{s^2} g_A (B B^\top)^+ + A X, \qquad
        \hat g_B = \tfrac{1}{s^2} (A^\top A)^+ g_B \left(I - B^\top (B B^\top)^+ B\right) - X B

    The product moves by :math:`s \hat g_A B + s A \hat g_B`, the projection of :math:`g` on the
    directions that factors can move it, whatever :math:`X` is; :math:`X` is chosen so that the
    factors stay nearest to LoRA's own gradients,

    .. math::

        A^\top A X + X B B^\top = -\tfrac{1}{s^2} A^\top g_A (B B^\top)^+

    Keeps no state and needs the parameters. A pair with a gradient that is not finite counts as
    having a zero gradient. Other parameters pass unchanged.

    Args:
      scaling: :math:`s`.
      names: the last keys of the two factors' paths.

    Raises:
      ValueError: at ``init``, there is no pair, a factor stands alone, or the shapes do not fit; at
        ``update``, no parameters are given.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> tx = fira_jax.transforms.adjust_lora_gradients(scaling=1.0)
      >>> params = {"lora_a": jnp.array([[1.0], [0.0]]), "lora_b": jnp.array([[2.0]])}
      >>> g = jnp.array([[3.0], [5.0]])  # the full gradient
      >>> grads = {"lora_a": g @ params["lora_b"].T, "lora_b": params["lora_a"].T @ g}
      >>> best, _ = tx.update(grads, tx.init(params), params)
      >>> moved = best["lora_a"] @ params["lora_b"] + params["lora_a"] @ best["lora_b"]
      >>> bool(jnp.allclose(moved, g))  # B reaches all of the one output
      True
    """

    def update(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del extra_args

        def one(factors: Pair, grads: Pair) -> Pair:
            return _nearest(factors, _finite(grads), scaling)

        return _on_pairs(updates, params, names, one), state

    return optax.GradientTransformationExtraArgs(_checked(names), update)


def in_product_space(
    inner: optax.GradientTransformation,
    scaling: float,
    *,
    names: tuple[str, str] = ("lora_a", "lora_b"),
) -> optax.GradientTransformationExtraArgs:
    r"""Runs a transformation on the gradient of the product of each pair of factors.

    ``inner`` sees, at the place of each first factor, the nearest gradient of the weight that the
    pair can follow, :math:`\tilde g = s \hat g_A B + s A \hat g_B`, ``[*batch, m, n]``, and nothing
    at the second's. Its step :math:`u` goes back to the factors as the gradients :math:`s u B^\top`
    and :math:`s A^\top u`, adjusted. It is given no parameters.

    Args:
      inner: the transformation, such as ``optax.scale_by_adam()``.
      scaling: :math:`s`.
      names: the last keys of the two factors' paths.

    Raises:
      ValueError: as for :func:`fira_jax.transforms.adjust_lora_gradients`.

    Example:
      >>> import fira_jax, jax.numpy as jnp, optax
      >>> tx = fira_jax.transforms.in_product_space(optax.scale_by_adam(), scaling=2.0)
      >>> params = {"lora_a": jnp.ones((16, 2)), "lora_b": jnp.zeros((2, 8))}
      >>> tx.init(params).mu["lora_a"].shape
      (16, 8)
    """
    inner = optax.with_extra_args_support(inner)
    check = _checked(names)

    def products(tree: Any, params: Any, f: Callable[[Pair, Pair], jax.Array]) -> Any:
        return _on_pairs(tree, params, names, lambda *pair: (f(*pair), optax.MaskedNode()))

    def init(params: Params) -> optax.OptState:
        check(params)
        params = unbox(params)

        def blank(factors: Pair, _: Pair) -> jax.Array:
            a, b = factors
            return jnp.zeros((*a.shape[:-1], b.shape[-1]), a.dtype)

        return inner.init(products(params, params, blank))

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        def equivalent(factors: Pair, grads: Pair) -> jax.Array:
            (a, b), (to_a, to_b) = factors, _nearest(factors, _finite(grads), scaling)
            return (scaling * (to_a @ b + a @ to_b)).astype(a.dtype)

        def back(factors: Pair, steps: Pair) -> Pair:
            (a, b), (step, _) = factors, steps
            return _nearest(factors, (scaling * step @ b.mT, scaling * a.mT @ step), scaling)

        with jax.default_matmul_precision("float32"):
            steps, state = inner.update(
                products(updates, params, equivalent), state, None, **extra_args
            )
            return _on_pairs(steps, params, names, back), state

    return optax.GradientTransformationExtraArgs(init, update)


def _nearest(factors: Pair, grads: Pair, scaling: float) -> Pair:
    """The gradients of a pair that move its product nearest to the gradient of the weight."""
    dtypes = [x.dtype for x in grads]
    wide = jnp.promote_types(jnp.result_type(*factors, *grads), jnp.float32)
    a, b, to_a, to_b = (x.astype(wide) for x in (*factors, *grads))
    with jax.default_matmul_precision("float32"):
        (mu, u), (nu, v) = (jnp.linalg.eigh(gram) for gram in (a.mT @ a, b @ b.mT))
        inverse_a = (u * _inverse(mu)[..., None, :]) @ u.mT
        inverse_b = (v * _inverse(nu)[..., None, :]) @ v.mT
        to_a = to_a @ inverse_b / scaling**2
        to_b = inverse_a @ (to_b - (to_b @ b.mT) @ inverse_b @ b) / scaling**2
        # The Sylvester equation, diagonal in the two sets of eigenvectors.
        right = -u.mT @ (a.mT @ to_a) @ v
        x = u @ (right * _inverse(mu[..., :, None] + nu[..., None, :], axes=(-2, -1))) @ v.mT
        adjusted = to_a + a @ x, to_b - x @ b
    return tuple(g.astype(dtype) for g, dtype in zip(adjusted, dtypes, strict=True))


def _inverse(values: jax.Array, axes: tuple[int, ...] = (-1,)) -> jax.Array:
    """One over each value, and 0 for those that are 0 up to rounding."""
    largest = jnp.max(values, axis=axes, keepdims=True)
    rounding = values.shape[-1] * jnp.finfo(values.dtype).eps * largest
    positive = values > rounding
    return jnp.where(positive, 1 / jnp.where(positive, values, 1), 0)


def _finite(grads: Pair) -> Pair:
    """The pair's gradients, zero if one of them has an entry that is not finite."""
    usable = jnp.all(jnp.stack([jnp.isfinite(g).all(axis=(-2, -1)) for g in grads]), axis=0)
    return tuple(jnp.where(usable[..., None, None], g, 0) for g in grads)  # type: ignore[return-value]


def _on_pairs(
    tree: Any, params: Any, names: tuple[str, str], f: Callable[[Pair, Pair], tuple[Any, Any]]
) -> Any:
    """Maps ``f(factors, their leaves of the tree)`` over all pairs; other leaves stay."""
    if params is None:
        raise ValueError(
            "gradients of factors are adjusted by the factors: pass params to update, as in "
            "tx.update(grads, state, params)"
        )
    leaves, treedef = jax.tree.flatten(unbox(tree), is_leaf=is_leaf)
    weights = jax.tree.leaves(unbox(params), is_leaf=is_leaf)
    require_same_leaves(leaves, weights)
    for i, j in _pairs(params, names):
        leaves[i], leaves[j] = f((weights[i], weights[j]), (leaves[i], leaves[j]))
    return jax.tree.unflatten(treedef, leaves)


def _checked(names: tuple[str, str]) -> Callable[[Params], optax.EmptyState]:
    """An ``init`` that keeps nothing and makes sure that there are pairs which fit."""

    def init(params: Params) -> optax.EmptyState:
        leaves = jax.tree_util.tree_leaves_with_path(unbox(params), is_leaf=is_leaf)
        pairs = _pairs(params, names)
        if not pairs:
            paths = ", ".join(path_name(path) for path, _ in leaves)
            raise ValueError(f"no pair of parameters ends in {' and '.join(names)}: {paths}")
        for i, j in pairs:
            (path, a), (_, b) = leaves[i], leaves[j]
            if a.ndim < 2 or a.shape[:-2] != b.shape[:-2] or a.shape[-1:] != b.shape[-2:-1]:
                raise ValueError(
                    f"parameter '{path_name(path)}' with shape {a.shape} and its partner "
                    f"{names[1]} with shape {b.shape}: expected [*batch, m, r] and [*batch, r, n]"
                )
        return optax.EmptyState()

    return init


def _pairs(params: Params, names: tuple[str, str]) -> list[tuple[int, int]]:
    """Places of the factors among the leaves.

    Raises:
      ValueError: one factor of a pair is missing.
    """
    found: dict[str, dict[str, int]] = {}
    leaves = jax.tree_util.tree_leaves_with_path(unbox(params), is_leaf=is_leaf)
    for place, (path, leaf) in enumerate(leaves):
        last = path_name(path[-1:])
        if last in names and not isinstance(leaf, optax.MaskedNode):
            found.setdefault(path_name(path[:-1]), {})[last] = place
    for above, factors in found.items():
        for name in names:
            if name not in factors:
                (other,) = factors
                raise ValueError(f"parameter '{above}/{other}' has no partner '{above}/{name}'")
    return [(factors[names[0]], factors[names[1]]) for factors in found.values()]

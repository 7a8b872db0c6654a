"""Training the roots of weights: large ones learn, small ones stay (Powerpropagation)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fira_jax.trees import Params


def in_power_space(
    inner: optax.GradientTransformation, alpha: float = 2.0
) -> optax.GradientTransformationExtraArgs:
    r"""Has an optimizer train :math:`\phi` where the model's weight is its power.

    .. math::

        w = \phi |\phi|^{\alpha - 1}, \qquad
        \nabla_\phi = \alpha |\phi|^{\alpha - 1} \nabla_w

    ``inner`` sees :math:`\phi` and its gradient; the update is what takes :math:`w` to the power of
    the new :math:`\phi`. The model keeps its weights as they are: this is the parametrization as
    an equivalent transformation of the gradient. A weight of zero stays zero, and weights gather
    around it, so that many can be pruned.

    Args:
      inner: a whole optimizer, learning rate included.
      alpha: :math:`\alpha \ge 1`; 1 is ``inner`` alone.

    Raises:
      ValueError: ``alpha`` below 1, or ``update`` without ``params``.

    Example:
      >>> import fira_jax, optax, jax.numpy as jnp
      >>> tx = fira_jax.transforms.in_power_space(optax.sgd(0.1), alpha=2.0)
      >>> w = jnp.array([4.0, 0.0])  # phi = 2: gradient 4, phi - 0.4 = 1.6, w = 2.56
      >>> updates, _ = tx.update(jnp.ones(2), tx.init(w), w)
      >>> [round(x, 2) for x in (w + updates).tolist()]
      [2.56, 0.0]

    References:
      Schwarz et al., `Powerpropagation: A sparsity inducing weight reparameterisation
      <https://arxiv.org/abs/2110.00296>`_, 2021.
    """
    if not alpha >= 1:
        raise ValueError(f"alpha must be at least 1, got {alpha}")
    inner = optax.with_extra_args_support(inner)

    def root(w: jax.Array) -> jax.Array:
        return jnp.sign(w) * jnp.abs(w) ** (1 / alpha)

    def init(params: Params) -> Any:
        return inner.init(jax.tree.map(root, params))

    def update(
        updates: optax.Updates, state: Any, params: Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, Any]:
        if params is None:
            raise ValueError("in_power_space needs params: call update(grads, state, params)")
        roots = jax.tree.map(root, params)
        grads = jax.tree.map(lambda g, p: alpha * jnp.abs(p) ** (alpha - 1) * g, updates, roots)
        steps, state = inner.update(grads, state, roots, **extra_args)

        def moved(w: jax.Array, p: jax.Array, step: jax.Array) -> jax.Array:
            new = p + step
            return (new * jnp.abs(new) ** (alpha - 1) - w).astype(w.dtype)

        return jax.tree.map(moved, params, roots, steps), state

    return optax.GradientTransformationExtraArgs(init, update)

"""SinkGD: the gradient with its rows and columns normalized, and no state."""

from __future__ import annotations

from typing import Any

import jax
import optax

from fira_jax.methods.shared import descent, formerly, shared_arguments
from fira_jax.transforms.adam import scale_by_adam
from fira_jax.transforms.matrices import on_matrices
from fira_jax.transforms.normalize import multi_normalize, unit_rms


@formerly("base_optimizer", "elsewhere")
@shared_arguments
def sinkgd(
    learning_rate: optax.ScalarOrSchedule,
    scale: jax.typing.ArrayLike = 0.05,
    elsewhere: optax.GradientTransformation | None = None,
    weight_decay: jax.typing.ArrayLike = 0.0,
    mask: Any = None,
    weight_dimension_numbers: Any = None,
    *,
    rounds: jax.typing.ArrayLike = 5,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    mu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""SinkGD: stateless descent along the Sinkhorn-normalized gradient.

    Columns and rows of the gradient :math:`X_0 = G \in \mathbb{R}^{m \times n}` are brought to root
    mean square one in turn,

    .. math::

        X_{:,j} \leftarrow \sqrt m \, X_{:,j} / \lVert X_{:,j} \rVert, \qquad
        X_{i,:} \leftarrow \sqrt n \, X_{i,:} / \lVert X_{i,:} \rVert, \qquad
        U = \kappa X_L

    so that every entry of :math:`X_L` has the size of one of Adam's steps. State: 0 elements for a
    matrix. Other parameters get Adam at the full learning rate.

    Args:
      learning_rate: a scalar or a schedule; 0.02 in the published runs.
      scale: :math:`\kappa`. Matrices move at ``learning_rate * scale``.
      weight_dimension_numbers: which parameters are matrices and along which axes, see
        :class:`fira_jax.LowRank`. Leave embeddings and the head to Adam:
        ``fira_jax.match_paths(("attn", "mlp"))``.
      rounds: :math:`L`, how often both are normalized.

    Raises:
      ValueError: an argument is out of range or, at ``init``, does not fit a parameter.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> params = {"w": jnp.ones((8, 16)), "b": jnp.ones(16)}
      >>> [row.state_bytes for row in fira_jax.describe(fira_jax.sinkgd(0.02), params).rows]
      [128, 0]

    References:
      Scetbon et al., `Gradient Multi-Normalization for Stateless and Scalable LLM Training
      <https://arxiv.org/abs/2502.06742>`_, 2025. Unverified, from ports and a digest, since the
      paper's text was not at hand: ``rounds``, ``scale`` and the learning rate. Norms are held
      above 1e-8 of the largest entry, not above 1e-8.
    """
    normalize = multi_normalize(unit_rms("input"), unit_rms("output"), rounds=rounds)
    return optax.chain(
        on_matrices(
            optax.chain(normalize, optax.scale(scale)),
            elsewhere or scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype),
            weight_dimension_numbers,
        ),
        *descent(learning_rate, weight_decay, mask),
    )

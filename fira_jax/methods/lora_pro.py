"""LoRA-Pro: gradients of low-rank factors that move their product as full fine-tuning would."""

from __future__ import annotations

from typing import Any, Literal

import jax
import optax

from fira_jax.checks import require_choice
from fira_jax.dtypes import steady
from fira_jax.methods.shared import descent, shared_arguments
from fira_jax.transforms.adam import scale_by_adam
from fira_jax.transforms.lora_gradients import adjust_lora_gradients, in_product_space


@shared_arguments
def lora_pro(
    learning_rate: optax.ScalarOrSchedule,
    scaling: float,
    weight_decay: jax.typing.ArrayLike = 0.0,
    mask: Any = None,
    *,
    moments: Literal["full", "factors"] = "full",
    base_optimizer: optax.GradientTransformation | None = None,
    names: tuple[str, str] = ("lora_a", "lora_b"),
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    r"""LoRA-Pro: LoRA whose steps come as near to full fine-tuning as factors allow.

    For weights :math:`W = W_0 + s A B` with trained :math:`A \in \mathbb{R}^{m \times r}`,
    :math:`B \in \mathbb{R}^{r \times n}`; what is done to their gradients is in
    :func:`fira_jax.transforms.adjust_lora_gradients`. Parameters in no pair get Adam.

    Args:
      scaling: :math:`s`, the factor of :math:`AB` in the weight.
      weight_decay: decoupled, of the factors, as in ``optax.adamw``.
      moments: ``"full"``, as released: Adam runs on the equivalent gradient of the weight, with
        :math:`2mn` elements of state for a pair, and its step goes back to the factors by the same
        formulas. ``"factors"``: Adam runs on the adjusted gradients of the factors, with
        :math:`2r(m + n)` elements; what it makes of them is not the nearest step any more.
      names: the last keys of the two factors' paths; those with the same path above are a pair.

    Raises:
      ValueError: unknown ``moments``; at ``init``, there is no pair, a factor stands alone, or the
        shapes of two do not fit.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> params = {"q": {"lora_a": jnp.ones((16, 2)), "lora_b": jnp.zeros((2, 8))}}
      >>> tx = fira_jax.lora_pro(1e-4, scaling=2.0, moments="factors")
      >>> fira_jax.describe(tx, params).state_bytes == 4 * (2 * 2 * (16 + 8) + 1)
      True

    References:
      Wang et al., `LoRA-Pro: Are Low-Rank Adapters Properly Optimized?
      <https://arxiv.org/abs/2407.18242>`_, 2024. Deviations from the released code:
      pseudo-inverses and the Sylvester equation by symmetric eigendecompositions instead of
      ``1e-8 * I`` and a complex eigensolver.
    """
    require_choice("moments", moments, ("full", "factors"))
    inner = steady(base_optimizer or scale_by_adam(b1, b2, eps))
    return optax.chain(
        in_product_space(inner, scaling, names=names)
        if moments == "full"
        else optax.chain(adjust_lora_gradients(scaling, names=names), inner),
        *descent(learning_rate, weight_decay, mask),
    )

"""Q-GaLore: GaLore with bases in 4 bits, moments in 8, and ever rarer refreshes."""

from __future__ import annotations

from typing import Any, Literal

import jax
import optax

from fira_jax import basis as bases
from fira_jax.arguments import BasisLike, Rank, RefreshLike, Side
from fira_jax.low_rank import LowRank
from fira_jax.methods.shared import adam_or, descent, shared_arguments
from fira_jax.precision.quantized_state import quantize_state
from fira_jax.transforms.project import low_rank_project, project_back


@shared_arguments
def q_galore(
    learning_rate: optax.ScalarOrSchedule,
    rank: Rank = 128,
    update_proj_gap: int = 200,
    scale: jax.typing.ArrayLike = 0.25,
    base_optimizer: optax.GradientTransformation | None = None,
    weight_decay: jax.typing.ArrayLike = 0.0,
    mask: Any = None,
    weight_dimension_numbers: Any = None,
    *,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    min_size: int | None = None,
    rounding: Literal["stochastic", "nearest"] = "stochastic",
    basis: BasisLike = "randomized",
    side: Side = "short",
    refresh: RefreshLike = "lazy",
    seed: jax.typing.ArrayLike = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Q-GaLore: GaLore whose state is quantized.

    .. math::

        U = \alpha \tilde P N, \qquad N = \mathrm{Adam}(\tilde P^\top G)

    with :math:`\tilde P` what the 4-bit codes of the basis stand for and Adam's moments in 8 bits.
    A matrix whose leading direction stays put has its gap doubled. State, in bytes, for a matrix
    with sides :math:`a \le b`:

    .. math::

        \lceil a r / 256 \rceil (128 + 5) + 2 r \left( b + 4 \lceil b / 256 \rceil \right) + 24

    the last for the refresh rule. The third economy of the method, weights in 8 bits, concerns what
    an Optax transformation does not own: :func:`fira_jax.precision.quantize_weights` and
    :func:`fira_jax.precision.apply_quantized_updates`.

    Args:
      update_proj_gap: steps between refreshes of the basis at the start. Static.
      base_optimizer: replaces Adam; any Optax transformation without a learning rate. Its state is
        quantized alike.
      b2: Adam's decay of the second moment; the authors' scripts set 0.95.
      min_size: moments of fewer numbers stay in float32; None for 4,096, like bitsandbytes. Static.
      rounding: of the moments, see :func:`fira_jax.precision.quantize_state`.
      basis: what is stored in 4 bits, see :class:`fira_jax.LowRank`; the authors use ``"svd"``. A
        :class:`fira_jax.basis.Quantized` is taken as it is, for other bits and groups.
      refresh: see :class:`fira_jax.LowRank`; ``fira_jax.refresh.Lazy`` takes the threshold, the
        length of the queue and the factor of the gap.
      seed: see :class:`fira_jax.LowRank`; it seeds the rounding of the moments, too.

    Raises:
      TypeError: ``rank`` or ``update_proj_gap`` is not a static int.
      ValueError: an argument is out of range or, at ``init``, does not fit a parameter.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> params = {"w": jnp.zeros((256, 1024))}
      >>> for method in (fira_jax.q_galore, fira_jax.galore):
      ...     print(fira_jax.describe(method(1e-2, rank=32), params).rows[0].state_bytes)
      70840
      294912

    References:
      Zhang et al., `Q-GaLore: Quantized GaLore with INT4 Projection and Layer-Adaptive Low-Rank
      Gradients <https://arxiv.org/abs/2407.08296>`_, 2024. Deviations from the released code: the
      default basis, canonical signs, weight decay's order and those that
      :class:`fira_jax.basis.Quantized`, :class:`fira_jax.refresh.Lazy` and
      :func:`fira_jax.precision.quantize_state` name.
    """
    basis = bases.resolve(basis)
    low_rank = LowRank(
        rank,
        update_proj_gap,
        scale,
        basis=basis if isinstance(basis, bases.Quantized) else bases.Quantized(basis),
        side=side,
        weight_dimension_numbers=weight_dimension_numbers,
        seed=seed,
        refresh=refresh,
    )
    inner = adam_or(base_optimizer, low_rank, b1=b1, b2=b2, eps=eps, bias_correction="inside")
    # Not a number by default, since optax.inject_hyperparams would trace it.
    smallest = 4096 if min_size is None else min_size
    return optax.chain(
        low_rank_project(low_rank),
        quantize_state(inner, min_size=smallest, rounding=rounding, seed=seed),
        project_back(),
        *descent(learning_rate, weight_decay, mask),
    )

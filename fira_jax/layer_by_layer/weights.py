"""How a layer's weights are stored, and what an update writes there."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import optax

from fira_jax.precision.quantized_weights import apply_quantized_updates, dequantize_weights
from fira_jax.trees import Params

# Of weights in 8 bits: what is decoded in float32 at a time.
_ROWS_AT_A_TIME = 256


class FloatingWeights(NamedTuple):
    """Weights as they are.

    Attributes:
      tx: what updates them.
    """

    tx: optax.GradientTransformationExtraArgs

    def write(
        self, stored: Any, value: Any, updates: Any, state: Any, layer: Any, count: int
    ) -> Params:
        """The new weights."""
        del stored, state, layer, count
        return optax.apply_updates(value, updates)


class QuantizedWeights(NamedTuple):
    """Weights in 8 bits, rounded at random, no two layers and no two steps alike.

    Attributes:
      tx: what updates them, its last state a count of the steps.
      seed: seeds the rounding.
    """

    tx: optax.GradientTransformationExtraArgs
    seed: jax.typing.ArrayLike

    @classmethod
    def counting_steps_of(
        cls, tx: optax.GradientTransformationExtraArgs, seed: jax.typing.ArrayLike
    ) -> QuantizedWeights:
        """With a counter behind ``tx``."""
        return cls(optax.chain(tx, optax.scale_by_schedule(lambda _: 1)), seed)

    def write(
        self, stored: Any, value: Any, updates: Any, state: Any, layer: Any, count: int
    ) -> Params:
        """The new codes, of layer ``layer`` of ``count``."""
        del value
        return apply_quantized_updates(
            stored,
            updates,
            state[-1].count * count + layer,
            seed=self.seed,
            rows_at_a_time=_ROWS_AT_A_TIME,
        )


def decoded(stored: Any) -> Params:
    """The weights that stored ones stand for."""
    return dequantize_weights(stored, rows_at_a_time=_ROWS_AT_A_TIME)

"""State and weights in fewer bits."""

from fira_jax.precision.quantized_state import QuantizedState as QuantizedState
from fira_jax.precision.quantized_state import quantize_state as quantize_state
from fira_jax.precision.quantized_weights import QuantizedWeight as QuantizedWeight
from fira_jax.precision.quantized_weights import apply_quantized_updates as apply_quantized_updates
from fira_jax.precision.quantized_weights import dequantize_weights as dequantize_weights
from fira_jax.precision.quantized_weights import quantize_weights as quantize_weights
from fira_jax.precision.stochastic_rounding import (
    StochasticRoundingState as StochasticRoundingState,
)
from fira_jax.precision.stochastic_rounding import round_stochastically as round_stochastically

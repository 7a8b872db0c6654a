"""Full-rank training of large models on low-rank optimizer memory, as Optax transformations."""

from fira_jax import basis as basis
from fira_jax import rules as rules
from fira_jax.describe import Description as Description
from fira_jax.describe import describe as describe
from fira_jax.limiter import NormGrowthLimitState as NormGrowthLimitState
from fira_jax.limiter import norm_growth_limit as norm_growth_limit
from fira_jax.low_rank import LowRank as LowRank
from fira_jax.low_rank import match_paths as match_paths
from fira_jax.matrices import OnMatricesState as OnMatricesState
from fira_jax.matrices import on_matrices as on_matrices
from fira_jax.methods.apollo import apollo as apollo
from fira_jax.methods.apollo import apollo_mini as apollo_mini
from fira_jax.methods.fira import fira as fira
from fira_jax.methods.galore import galore as galore
from fira_jax.methods.scale import scale as scale
from fira_jax.methods.sinkgd import sinkgd as sinkgd
from fira_jax.methods.swan import swan as swan
from fira_jax.moments import AdamInSubspaceState as AdamInSubspaceState
from fira_jax.moments import in_subspace as in_subspace
from fira_jax.moments import scale_by_adam_in_subspace as scale_by_adam_in_subspace
from fira_jax.normalise import multi_normalise as multi_normalise
from fira_jax.normalise import standardise as standardise
from fira_jax.normalise import unit_rms as unit_rms
from fira_jax.normalise import whiten as whiten
from fira_jax.project import LowRankProjectState as LowRankProjectState
from fira_jax.project import low_rank_project as low_rank_project
from fira_jax.project import project_back as project_back
from fira_jax.quantize import QuantizedState as QuantizedState
from fira_jax.quantize import quantize_state as quantize_state
from fira_jax.quantized_weights import QuantizedWeight as QuantizedWeight
from fira_jax.quantized_weights import apply_quantized_updates as apply_quantized_updates
from fira_jax.quantized_weights import dequantize_weights as dequantize_weights
from fira_jax.quantized_weights import quantize_weights as quantize_weights
from fira_jax.residual import fira_residual_scale as fira_residual_scale
from fira_jax.residual import replace_by_scaled_gradient as replace_by_scaled_gradient
from fira_jax.rounding import StochasticRoundingState as StochasticRoundingState
from fira_jax.rounding import round_stochastically as round_stochastically
from fira_jax.sharding import state_shardings as state_shardings
from fira_jax.subspace import MatrixView as MatrixView
from fira_jax.subspace import Subspace as Subspace

__version__ = "0.1.0"

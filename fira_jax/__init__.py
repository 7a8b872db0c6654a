"""Full-rank training of large models on low-rank optimizer memory, as Optax transformations.

What a walk through a subspace is made of, the methods, and the tools around them stand here. The
rest is one step further: kinds of subspaces in :mod:`fira_jax.basis`, when they are replaced in
:mod:`fira_jax.refresh`, rarer pieces and the states of all in :mod:`fira_jax.transforms`, fewer
bits in :mod:`fira_jax.precision`.
"""

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from fira_jax import basis as basis
from fira_jax import precision as precision
from fira_jax import refresh as refresh
from fira_jax import transforms as transforms
from fira_jax.conventions import match_modules as match_modules
from fira_jax.cost.describe import Description as Description
from fira_jax.cost.describe import describe as describe
from fira_jax.dimension_numbers import match_paths as match_paths
from fira_jax.layer_by_layer.cross_entropy import chunked_cross_entropy as chunked_cross_entropy
from fira_jax.layer_by_layer.step import Layerwise as Layerwise
from fira_jax.layer_by_layer.step import layerwise as layerwise
from fira_jax.low_rank import LowRank as LowRank
from fira_jax.matrix_view import MatrixView as MatrixView
from fira_jax.methods.adadagrad import adadagrad as adadagrad
from fira_jax.methods.adarankgrad import adarankgrad as adarankgrad
from fira_jax.methods.alice import alice as alice
from fira_jax.methods.apollo import apollo as apollo
from fira_jax.methods.apollo import apollo_mini as apollo_mini
from fira_jax.methods.dct_adamw import dct_adamw as dct_adamw
from fira_jax.methods.fira import fira as fira
from fira_jax.methods.fira_orthogonal import fira_orthogonal as fira_orthogonal
from fira_jax.methods.fira_tracked import fira_tracked as fira_tracked
from fira_jax.methods.frugal import frugal as frugal
from fira_jax.methods.galore import galore as galore
from fira_jax.methods.galore2 import galore2 as galore2
from fira_jax.methods.gradnormlorp import gradnormlorp as gradnormlorp
from fira_jax.methods.gwt import gwt as gwt
from fira_jax.methods.ldadam import ldadam as ldadam
from fira_jax.methods.lora_pro import lora_pro as lora_pro
from fira_jax.methods.lotus import lotus as lotus
from fira_jax.methods.m_fac import m_fac as m_fac
from fira_jax.methods.q_galore import q_galore as q_galore
from fira_jax.methods.racs import racs as racs
from fira_jax.methods.scale_optimizer import scale_optimizer as scale_optimizer
from fira_jax.methods.sinkgd import sinkgd as sinkgd
from fira_jax.methods.subtrack import subtrack as subtrack
from fira_jax.methods.sumo import sumo as sumo
from fira_jax.methods.swan import swan as swan
from fira_jax.methods.trion import trion as trion
from fira_jax.methods.vlorp import vlorp as vlorp
from fira_jax.ranks import active_ranks as active_ranks
from fira_jax.ranks import resize_state as resize_state
from fira_jax.sharding.state import state_shardings as state_shardings
from fira_jax.subspace import Subspace as Subspace
from fira_jax.torch_state import from_torch as from_torch
from fira_jax.transforms.adam import scale_by_adam_in_subspace as scale_by_adam_in_subspace
from fira_jax.transforms.equalize import equalize_residual as equalize_residual
from fira_jax.transforms.error_feedback import (
    low_rank_project_with_feedback as low_rank_project_with_feedback,
)
from fira_jax.transforms.factored import project_back_by_factors as project_back_by_factors
from fira_jax.transforms.in_subspace import in_subspace as in_subspace
from fira_jax.transforms.limiter import norm_growth_limit as norm_growth_limit
from fira_jax.transforms.matrices import on_matrices as on_matrices
from fira_jax.transforms.measured import measured as measured
from fira_jax.transforms.measured import metrics as metrics
from fira_jax.transforms.momentum_feedback import momentum_feedback as momentum_feedback
from fira_jax.transforms.project import low_rank_project as low_rank_project
from fira_jax.transforms.project import project_back as project_back
from fira_jax.transforms.residual import fira_residual_scale as fira_residual_scale
from fira_jax.transforms.residual import plain_residual as plain_residual
from fira_jax.transforms.residual import replace_by_scaled_gradient as replace_by_scaled_gradient
from fira_jax.transforms.residual import residual_over_denominator as residual_over_denominator

if TYPE_CHECKING:
    from fira_jax.cost.memory import Memory as Memory
    from fira_jax.cost.memory import memory as memory

__version__ = "0.2.0"

_LATER = dict.fromkeys(("Memory", "memory"), "fira_jax.cost.memory")
"""What takes longer to import than all the rest together, and is seldom called."""

_RENAMED = {
    "AdaGradNormState": "fira_jax.transforms.ScaleByAdagradNormState",
    "AdamInSubspaceState": "fira_jax.transforms.AdamInSubspaceState",
    "AdaptBatchSizeState": "fira_jax.transforms.AdaptBatchSizeState",
    "EqualiseResidualState": "fira_jax.transforms.EqualizeResidualState",
    "LowRankFeedbackState": "fira_jax.transforms.LowRankProjectWithFeedbackState",
    "LowRankProjectState": "fira_jax.transforms.LowRankProjectState",
    "MFacState": "fira_jax.transforms.ScaleByMFacState",
    "MomentumFeedbackState": "fira_jax.transforms.MomentumFeedbackState",
    "NormGrowthLimitState": "fira_jax.transforms.NormGrowthLimitState",
    "OnMatricesState": "fira_jax.transforms.OnMatricesState",
    "ProjFactorState": "fira_jax.transforms.ProjectBackByFactorsState",
    "QuantizedState": "fira_jax.precision.QuantizedState",
    "QuantizedWeight": "fira_jax.precision.QuantizedWeight",
    "StochasticRoundingState": "fira_jax.precision.StochasticRoundingState",
    "WeightNormState": "fira_jax.transforms.WeightNormalizedState",
    "adapt_batch_size": "fira_jax.transforms.adapt_batch_size",
    "adjust_lora_gradients": "fira_jax.transforms.adjust_lora_gradients",
    "apply_quantized_updates": "fira_jax.precision.apply_quantized_updates",
    "dequantize_weights": "fira_jax.precision.dequantize_weights",
    "equalise_residual": "fira_jax.equalize_residual",
    "gradient_variance": "fira_jax.transforms.gradient_variance",
    "in_product_space": "fira_jax.transforms.in_product_space",
    "multi_normalise": "fira_jax.transforms.multi_normalize",
    "quantize_state": "fira_jax.precision.quantize_state",
    "quantize_weights": "fira_jax.precision.quantize_weights",
    "round_stochastically": "fira_jax.precision.round_stochastically",
    "rules": "fira_jax.refresh",
    "scale": "fira_jax.scale_optimizer",
    "scale_by_adagrad_norm": "fira_jax.transforms.scale_by_adagrad_norm",
    "scale_by_m_fac": "fira_jax.transforms.scale_by_m_fac",
    "squared_norm": "fira_jax.transforms.squared_norm",
    "standardise": "fira_jax.transforms.standardize",
    "unit_rms": "fira_jax.transforms.unit_rms",
    "weight_normalised": "fira_jax.transforms.weight_normalized",
    "whiten": "fira_jax.transforms.whiten",
}
"""Names of version 0.1, which still work and warn; gone in 0.3."""


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    if name in _RENAMED:
        home, _, renamed = _RENAMED[name].rpartition(".")
        warnings.warn(
            f"fira_jax.{name} is now {_RENAMED[name]}; the old name goes in version 0.3",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(importlib.import_module(home), renamed)
    raise AttributeError(f"module 'fira_jax' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})

"""The pieces of a walk through the subspace, one idea a file.

The usual ones are at the top of :mod:`fira_jax`; here are the rarer ones and the states of all.
"""

from fira_jax.norms import squared_norm as squared_norm
from fira_jax.transforms.adagrad_norm import ScaleByAdagradNormState as ScaleByAdagradNormState
from fira_jax.transforms.adagrad_norm import scale_by_adagrad_norm as scale_by_adagrad_norm
from fira_jax.transforms.adam import AdamInSubspaceState as AdamInSubspaceState
from fira_jax.transforms.equalize import EqualizeResidualState as EqualizeResidualState
from fira_jax.transforms.error_feedback import (
    LowRankProjectWithFeedbackState as LowRankProjectWithFeedbackState,
)
from fira_jax.transforms.factored import ProjectBackByFactorsState as ProjectBackByFactorsState
from fira_jax.transforms.in_subspace import InSubspaceState as InSubspaceState
from fira_jax.transforms.l_greco import choose_options as choose_options
from fira_jax.transforms.l_greco import choose_ranks as choose_ranks
from fira_jax.transforms.limiter import NormGrowthLimitState as NormGrowthLimitState
from fira_jax.transforms.lora_gradients import adjust_lora_gradients as adjust_lora_gradients
from fira_jax.transforms.lora_gradients import in_product_space as in_product_space
from fira_jax.transforms.m_fac import ScaleByMFacState as ScaleByMFacState
from fira_jax.transforms.m_fac import scale_by_m_fac as scale_by_m_fac
from fira_jax.transforms.matrices import OnMatricesState as OnMatricesState
from fira_jax.transforms.measured import MeasuredState as MeasuredState
from fira_jax.transforms.measured import Measures as Measures
from fira_jax.transforms.measured import Metrics as Metrics
from fira_jax.transforms.momentum_feedback import MomentumFeedbackState as MomentumFeedbackState
from fira_jax.transforms.norm_test import AdaptBatchSizeState as AdaptBatchSizeState
from fira_jax.transforms.norm_test import adapt_batch_size as adapt_batch_size
from fira_jax.transforms.norm_test import gradient_variance as gradient_variance
from fira_jax.transforms.normalize import multi_normalize as multi_normalize
from fira_jax.transforms.normalize import orthogonal as orthogonal
from fira_jax.transforms.normalize import standardize as standardize
from fira_jax.transforms.normalize import unit_rms as unit_rms
from fira_jax.transforms.normalize import whiten as whiten
from fira_jax.transforms.orthogonalization import orthogonalize as orthogonalize
from fira_jax.transforms.power_sgd import PowerSgdMeanState as PowerSgdMeanState
from fira_jax.transforms.power_sgd import power_sgd_mean as power_sgd_mean
from fira_jax.transforms.power_space import in_power_space as in_power_space
from fira_jax.transforms.project import LowRankProjectState as LowRankProjectState
from fira_jax.transforms.proximal import ProximalL1State as ProximalL1State
from fira_jax.transforms.proximal import proximal_l1 as proximal_l1
from fira_jax.transforms.smallest_weights import OnSmallestWeightsState as OnSmallestWeightsState
from fira_jax.transforms.smallest_weights import on_smallest_weights as on_smallest_weights
from fira_jax.transforms.truncation import TruncatePeriodicallyState as TruncatePeriodicallyState
from fira_jax.transforms.truncation import truncate_periodically as truncate_periodically
from fira_jax.transforms.turning import Turn as Turn
from fira_jax.transforms.weight_norm import WeightNormalizedState as WeightNormalizedState
from fira_jax.transforms.weight_norm import weight_normalized as weight_normalized

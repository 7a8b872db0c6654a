"""When a subspace is replaced: one file for each rule, all behind :class:`Rule`."""

from fira_jax.refresh.displacement import Displacement as Displacement
from fira_jax.refresh.lazy import Lazy as Lazy
from fira_jax.refresh.norm_decay import NormDecay as NormDecay
from fira_jax.refresh.protocol import Rule as Rule

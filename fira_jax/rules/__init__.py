"""Refresh rules that remember something: one file each, all behind :class:`Rule`."""

from fira_jax.rules.displacement import Displacement as Displacement
from fira_jax.rules.lazy import Lazy as Lazy
from fira_jax.rules.norm_decay import NormDecay as NormDecay
from fira_jax.rules.protocol import Rule as Rule

"""The types of the arguments that many functions share: one alias each, used in every signature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax

from fira_jax import plan
from fira_jax.basis import Basis
from fira_jax.refresh import Rule

Rank = plan.Rank
Side = plan.Side

BasisLike = str | Basis
"""A kind of basis, or its name."""

RefreshLike = str | Callable[..., jax.Array] | Rule
"""When bases are replaced: a rule, its name, or a function of the step count."""

Moments = Literal["keep", "carry", "reset"]
"""What happens to the moments at a refresh."""

Carry = Literal["raw", "central"]
"""How a second moment turns into a new basis."""

Form = Literal["released", "paper"]
"""Fira as its code has it, or as its paper does."""

Granularity = Literal["column", "matrix"]
"""One scale for each column of a matrix, or one for all of it."""

"""What the methods have in common: the ends of their chains, and the words for their arguments."""

from __future__ import annotations

import functools
import inspect
import re
import textwrap
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import optax

from fira_jax.low_rank import LowRank
from fira_jax.methods.arguments import checked
from fira_jax.transforms.adam import scale_by_adam_in_subspace
from fira_jax.transforms.in_subspace import in_subspace
from fira_jax.transforms.limiter import norm_growth_limit

P = ParamSpec("P")
R = TypeVar("R")
Method = TypeVar("Method", bound=Callable[..., Any])


def adam_or(
    base_optimizer: optax.GradientTransformation | None, low_rank: LowRank, **adam: Any
) -> optax.GradientTransformationExtraArgs:
    """The optimizer in the subspace: Adam with these options, unless there is another."""
    if base_optimizer is None:
        return scale_by_adam_in_subspace(low_rank, **adam)
    return in_subspace(low_rank, base_optimizer)


def limiter(
    low_rank: LowRank, gamma: jax.typing.ArrayLike | None, **options: Any
) -> optax.GradientTransformation:
    """The limiter with this growth factor, or nothing where there is none."""
    return optax.identity() if gamma is None else norm_growth_limit(low_rank, gamma, **options)


def descent(
    learning_rate: optax.ScalarOrSchedule, weight_decay: jax.typing.ArrayLike, mask: Any
) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """What every chain ends with: decoupled decay, and a step downhill."""
    return (
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )


ARGUMENTS = {
    "learning_rate": "a scalar or a schedule.",
    "rank": "dimension of the subspace, see :class:`fira_jax.LowRank`. Static.",
    "update_proj_gap": "steps between two refreshes of the basis. Static.",
    "scale": r":math:`\alpha`; projected weights move at ``learning_rate * scale``.",
    "base_optimizer": (
        "replaces Adam, in the subspace and for other parameters; any Optax transformation "
        "without a learning rate."
    ),
    "elsewhere": (
        "replaces Adam for all other parameters; any Optax transformation without a learning rate."
    ),
    "weight_decay": "decoupled, as in ``optax.adamw``.",
    "mask": "which parameters decay, as in ``optax.add_decayed_weights``.",
    "weight_dimension_numbers": (
        "which parameters are projected and along which axes, see :class:`fira_jax.LowRank`."
    ),
    "b1": "Adam's decay of the first moment.",
    "b2": "Adam's decay of the second moment.",
    "eps": r"Adam's :math:`\epsilon`.",
    "gamma": "the limiter's growth factor; None for no limiter.",
    "bias_correction": "whether Adam corrects its bias.",
    "carry": "how the second moment turns, see :func:`fira_jax.scale_by_adam_in_subspace`.",
    "form": "see :func:`fira_jax.fira`.",
    "basis": "see :class:`fira_jax.LowRank`.",
    "side": "see :class:`fira_jax.LowRank`.",
    "refresh": "see :class:`fira_jax.LowRank`.",
    "moments": "see :class:`fira_jax.LowRank`.",
    "seed": "see :class:`fira_jax.LowRank`.",
    "basis_dtype": "dtype of the stored basis; None for the parameter's.",
    "mu_dtype": "dtype of the first moments; None for the parameter's.",
    "nu_dtype": "dtype of the second moments; None for the parameter's.",
}
"""Arguments that mean the same in every method that has them."""


def shared_arguments(method: Method) -> Method:
    """Completes a method's docstring: what it does not say of an argument, :data:`ARGUMENTS` does.

    What the arguments hold is checked at each call, see :func:`fira_jax.methods.arguments.checked`.

    So a docstring holds what is a method's own, and readers see all of its arguments, in order.

    Raises:
      TypeError: nobody says what an argument means, or a method describes one that it lacks.
    """
    if method.__doc__ is None:  # python -OO
        return checked(method)
    text = inspect.cleandoc(method.__doc__)
    found = re.search(r"^Args:\n((?:  .*\n)+)", text, re.MULTILINE)
    own = re.split(r"^  (?=\w)", found[1], flags=re.MULTILINE)[1:] if found else []
    entries = {entry.partition(":")[0]: f"  {entry}" for entry in own}
    names = inspect.signature(method).parameters
    unknown = [name for name in names if name not in entries | ARGUMENTS]
    if unknown or entries.keys() - names.keys():
        raise TypeError(
            f"{method.__name__} must describe {unknown} and nothing that it does not take, got "
            f"{list(entries)}"
        )
    section = "Args:\n" + "".join(entries.get(name) or _entry(name) for name in names)
    if found is None:
        found = re.search("^(?=Raises:|Example:)", text, re.MULTILINE)
        section += "\n"
        assert found
    method.__doc__ = text[: found.start()] + section + text[found.end() :]
    return checked(method)


def _entry(name: str) -> str:
    lines = textwrap.wrap(
        f"{name}: {ARGUMENTS[name]}", 92, break_long_words=False, break_on_hyphens=False
    )
    return "  " + "\n    ".join(lines) + "\n"


def formerly(old: str, new: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Accepts an argument by the name it had in version 0.1, with a warning; gone in 0.3."""

    def accept(method: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(method)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if old in kwargs:
                name = getattr(method, "__name__", repr(method))
                if new in kwargs:
                    raise TypeError(f"{name} got both {new} and {old}, its former name")
                warnings.warn(
                    f"{name}'s argument {old} is now {new}; the old name goes in version 0.3",
                    DeprecationWarning,
                    stacklevel=2,
                )
                kwargs[new] = kwargs.pop(old)
            return method(*args, **kwargs)

        return call

    return accept

"""What all methods do with their arguments before anything else."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
import optax

from fira_jax.checks import STATIC_ARGS, decay, did_you_mean, epsilon, number, require_learning_rate

Method = TypeVar("Method", bound=Callable[..., Any])

_NUMBERS: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(("b1", "b2", "momentum", "rho", "decay"), decay),
    "eps": epsilon,
    "scale": number,
    "consistent_rms": number,
    "gamma": functools.partial(number, least=1),
    "weight_decay": functools.partial(number, least=0),
}
"""How a number of this name is read; see :func:`fira_jax.checks.number`."""

_TREES = {
    "mask": "a function of the parameters or a tree of booleans",
    "weight_dimension_numbers": "dimension numbers, a tree of them or a function of the parameters",
    "refresh": "a name, a callable or a fira_jax.refresh.Rule",
}
"""Arguments that may be functions, but not schedules."""

_ELSEWHERE = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    **dict.fromkeys(("betas", "beta1", "beta2", "beta_1", "beta_2"), "b1 and b2"),
    "epsilon": "eps",
    **dict.fromkeys(("r", "lora_r", "k", "density"), "rank"),
    **dict.fromkeys(("alpha", "galore_scale", "apollo_scale", "lora_alpha"), "scale"),
    **dict.fromkeys(
        ("T", "gap", "update_gap", "update_freq", "proj_gap", "subspace_update_interval"),
        "update_proj_gap",
    ),
    "proj_type": "side: 'std' is 'short', 'reverse_std' is 'long', 'left' and 'right' are "
    "'output' and 'input' of PyTorch's layout",
    **dict.fromkeys(("proj", "projection", "proj_method"), "basis, such as 'svd' or 'random'"),
    "scale_type": "granularity: 'channel' is 'column', 'tensor' is 'matrix'",
    "correct_bias": "bias_correction",
    **dict.fromkeys(("cos_threshold", "gamma_proj", "queue_size"), "refresh=fira_jax.refresh.Lazy"),
    **dict.fromkeys(
        ("target_modules", "optim_target_modules", "target_modules_list"),
        "weight_dimension_numbers, such as fira_jax.match_paths(('attn', 'mlp'))",
    ),
    **dict.fromkeys(("random_state", "rng", "key"), "seed"),
    "weight_decay_mask": "mask",
}
"""What other libraries call an argument -> what it is called here."""


def checked(make: Method) -> Method:
    """Decorates a method: numbers are checked and never used in less than float32.

    Arguments that the method does not have are answered with those that it has.
    """
    signature = inspect.signature(make)

    @functools.wraps(make)
    def made(*args: Any, **kwargs: Any) -> Any:
        for name in kwargs.keys() - signature.parameters.keys():
            raise TypeError(_answer(make.__name__, name, signature))
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:  # Python's own words name the method
            return make(*args, **kwargs)
        for name, value in bound.arguments.items():
            if name == "learning_rate":
                require_learning_rate(value)
            elif name in _TREES:
                _require_tree(name, value)
            elif name in _NUMBERS and (value is not None or _is_needed(signature, name)):
                bound.arguments[name] = _NUMBERS[name](name, value)
        return _as_wide_as_they_were(make(*bound.args, **bound.kwargs))

    return made  # type: ignore[return-value]


def _as_wide_as_they_were(
    tx: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """Returns updates in the dtype of gradient or parameter, whichever is wider.

    Injected hyperparameters are arrays in float32, which widen what they multiply, as a float32
    state does; wrappers such as ``optax.apply_if_finite`` need the dtypes that came in.
    """

    def update(
        updates: optax.Updates, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[optax.Updates, Any]:
        new, state = tx.update(updates, state, params, **extra_args)
        leaves, treedef = jax.tree.flatten(new)
        both = jax.tree.leaves(updates), jax.tree.leaves(params)
        if any(len(leaves) != len(other) for other in both):
            return new, state
        widest = (
            max((leaf.dtype for leaf in pair), key=lambda dtype: dtype.itemsize)
            for pair in zip(*both, strict=True)
        )
        cast = [x.astype(dtype) for x, dtype in zip(leaves, widest, strict=True)]
        return jax.tree.unflatten(treedef, cast), state

    return optax.GradientTransformationExtraArgs(tx.init, update)


def _is_needed(signature: inspect.Signature, name: str) -> bool:
    """Whether None is no value of this number."""
    return "None" not in str(signature.parameters[name].annotation)


def _require_tree(name: str, value: Any) -> None:
    """One number instead is what ``optax.inject_hyperparams`` has made of a function."""
    if isinstance(value, jax.Array | np.ndarray | np.generic | bool | int | float):
        raise TypeError(
            f"{name} must be {_TREES[name]}, got {value!r}: optax.inject_hyperparams calls "
            f"functions as schedules, unless it is told {STATIC_ARGS}"
        )


def _answer(method: str, name: str, signature: inspect.Signature) -> str:
    known = [x for x in signature.parameters if x in _ELSEWHERE.get(name, "")]
    if name in _ELSEWHERE and known:
        ours, _, remark = _ELSEWHERE[name].partition(": ")
        hint = f": it is called {ours} here" + (remark and f", {remark}")
    else:
        hint = did_you_mean(name, signature.parameters)
    return f"{method}() has no argument {name!r}{hint}"

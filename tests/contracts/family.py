"""Every method of the library, and every piece that a method takes only when asked to.

Methods are found, not listed: a new one is tested as soon as ``fira_jax`` exports it.
"""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fira_jax
from fira_jax import basis, refresh

METHODS = {
    name: method
    for name, method in vars(fira_jax).items()
    if inspect.isfunction(method) and method.__module__.startswith("fira_jax.methods.")
}
SMALL = {
    "learning_rate": 1e-2,
    "rank": 4,
    "update_proj_gap": 2,
    "scaling": 2.0,
    "initial_batch_size": 8,
    "maximum_batch_size": 64,
    "weight_decay": 0.1,
    "last_layer": "w",
}
"""What every method is given that takes an argument of this name."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in METHODS},
    **{
        f"galore, {name}": ("galore", {"basis": name})
        for name in ("svd", "random", "dct", "orthonormal", "columns", "randk", "switching", "oja")
    },
    "galore, power iteration": ("galore", {"basis": basis.PowerIteration()}),
    "galore, quantized basis": ("galore", {"basis": basis.Quantized()}),
    "galore, lazy": ("galore", {"refresh": "lazy"}),
    "galore, staggered": ("galore", {"refresh": "staggered"}),
    "galore, displacement": ("galore", {"refresh": refresh.Displacement()}),
    "galore, carried": ("galore", {"moments": "carry"}),
    "galore, lion": ("galore", {"base_optimizer": optax.scale_by_lion()}),
    "galore, sgd": ("galore", {"base_optimizer": optax.trace(0.9)}),
    "fira, paper": ("fira", {"form": "paper", "granularity": "matrix"}),
    "fira, bfloat16 moments": ("fira", {"mu_dtype": jnp.bfloat16}),
    "frugal, sgd": ("frugal", {"rule": "sgd"}),
    "dct_adamw, fed back": ("dct_adamw", {"error_feedback": True}),
    "vlorp, pieces": ("vlorp", {"pieces": 2, "rank": 2, "moments": "reset"}),
    "ldadam, no feedback": ("ldadam", {"error_feedback": False}),
    "alice, no covariance": ("alice", {"basis": basis.Switching(decay=0.0)}),
    "lora_pro, factors": ("lora_pro", {"moments": "factors"}),
    "m_fac, momentum": ("m_fac", {"momentum": 0.9}),
    "adadagrad, model": ("adadagrad", {"granularity": "model"}),
}
"""Name of a test -> method and arguments."""


def small(method: str, **options: Any) -> dict[str, Any]:
    """Arguments with which the method has something to do on :func:`params`."""
    taken = inspect.signature(METHODS[method]).parameters
    return {name: value for name, value in SMALL.items() if name in taken} | options


def build(variant: str, **options: Any) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a test; ``update`` is given what its method needs beside the gradients."""
    method, fixed = VARIANTS[variant]
    return with_extras(METHODS[method](**small(method, **fixed, **options)))


def with_extras(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Hands over the one argument of ``update`` that a method asks for."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        return optax.with_extra_args_support(tx).update(
            updates, state, params, gradient_variance=jnp.ones([], jnp.float32)
        )

    return optax.GradientTransformationExtraArgs(tx.init, update)


def params(variant: str, dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    """A vector, and a matrix or what else the method works on."""
    return gradients(variant, 0, dtype)


def gradients(variant: str, seed: int, dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    """Dense ones of ordinary size, for the tree of :func:`params`."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"b": (16,), "w": (8, 16)}
    if VARIANTS[variant][0] == "lora_pro":
        shapes = {"b": (16,), "lora_a": (8, 2), "lora_b": (2, 16)}
    return {name: jnp.asarray(rng.standard_normal(shape), dtype) for name, shape in shapes.items()}


def arrays_of(tree: Any) -> list[tuple[str, jax.Array]]:
    """The arrays of a tree and their paths."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path), x) for path, x in flat]

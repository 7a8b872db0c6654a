"""Tracing costs in proportion to the number of matrices, for every method.

Counted, not timed: equations of the traced program, and calls of Python functions while it is
traced.
"""

from __future__ import annotations

import cProfile
import functools
import inspect
import pstats
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import fira_jax
from fira_jax.jax_internals import inner_programs

METHODS = {
    name: method
    for name, method in vars(fira_jax).items()
    if inspect.isfunction(method) and "learning_rate" in inspect.signature(method).parameters
}
NEEDS_MORE = {"lora_pro", "adadagrad"}  # pairs of factors, and a variance
SHAPES = [(8, 8), (8, 12), (12, 8)]


def params_of(layers: int) -> Any:
    """As many separate matrices of each shape, and a head."""
    layer = {f"w{j}": jax.ShapeDtypeStruct(s, jnp.float32) for j, s in enumerate(SHAPES)}
    head = {"lm_head": jax.ShapeDtypeStruct((8, 16), jnp.float32)}
    return head | {f"layer_{i}": layer for i in range(layers)}


def make(name: str) -> Any:
    method = METHODS[name]
    if "rank" in inspect.signature(method).parameters and name != "apollo_mini":
        return method(0.1, rank=4)
    return method(0.1)


def equations(jaxpr: Any) -> int:
    """Of the program and all programs inside it."""
    inner = (p for e in jaxpr.eqns for p in inner_programs(e))
    return len(jaxpr.eqns) + sum(equations(x) for x in inner)


def cost(tx: Any, layers: int) -> tuple[int, int]:
    """Of tracing: equations and calls."""
    params = params_of(layers)
    with cProfile.Profile() as profile:
        jaxpr = jax.make_jaxpr(tx.update)(params, jax.eval_shape(tx.init, params), params)
    return equations(jaxpr.jaxpr), pstats.Stats(profile).total_calls


@pytest.mark.parametrize("name", sorted(METHODS.keys() - NEEDS_MORE))
def test_tracing_is_linear(name):
    tx = make(name)
    cost(tx, 1)  # what is done once is done
    for few, some, many in zip(*(cost(tx, n) for n in (2, 5, 8)), strict=True):
        assert few < some < many
        assert many - some <= 1.05 * (some - few)


def test_check_sees_what_grows_with_the_square():
    """JAX's answer to ``tracer.device``, an attribute it lacks, tells of all the program so far."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        def one(x: Any) -> Any:
            for _ in range(10):
                x = jnp.sin(x) if getattr(x, "device", None) is None else x
            return x

        total = functools.reduce(jnp.add, (jnp.sum(x) for x in jax.tree.leaves(updates)))
        return jax.tree.map(lambda x: one(x + total), updates), state

    tx = optax.GradientTransformation(lambda _: optax.EmptyState(), update)
    few, some, many = (cost(tx, n)[1] for n in (2, 5, 8))
    assert many - some > 1.05 * (some - few)

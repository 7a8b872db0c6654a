"""What several tests share: gradients, bases made for a test, ways to run a chain."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax

import fira_jax

# Derandomized: a failure in CI is the same failure at home. Compiled functions are reused from
# example to example, so a deadline would measure only the first.
examples = functools.partial(
    hypothesis.settings,
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)


def normal(seed: int, *shape: int, dtype: Any = np.float32) -> np.ndarray:
    """A dense gradient of ordinary size."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def with_spectrum(seed: int, a: int, b: int, singular_values: np.ndarray) -> np.ndarray:
    """A matrix ``[a, b]`` with these singular values and random singular vectors."""
    k = len(singular_values)
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.standard_normal((a, k)))[0]
    right = np.linalg.qr(rng.standard_normal((b, k)))[0]
    return (left * singular_values @ right.T).astype(np.float32)


def run(tx: Any, grads: Any, params: Any = None) -> tuple[Any, Any]:
    """Updates at every step for gradients stacked along axis 0, and the last state; one jit."""
    first = jax.tree.map(lambda g: g[0], grads)
    params = jax.tree.map(jnp.asarray, first) if params is None else params

    @jax.jit
    def scan(state: Any, grads: Any) -> tuple[Any, Any]:
        def step(carry: Any, grad: Any) -> tuple[Any, Any]:
            params, state = carry
            updates, state = tx.update(grad, state, params)
            return (optax.apply_updates(params, updates), state), updates

        (_, state), updates = jax.lax.scan(step, (params, state), grads)
        return updates, state

    return scan(tx.init(params), grads)


def history(tx: Any, grads: Any, params: Any) -> tuple[Any, Any]:
    """Like :func:`run` at constant weights, but with the state after every step."""

    @jax.jit
    def scan(state: Any, grads: Any) -> tuple[Any, Any]:
        def step(state: Any, grad: Any) -> tuple[Any, Any]:
            updates, state = tx.update(grad, state, params)
            return state, (updates, state)

        return jax.lax.scan(step, state, grads)[1]

    return scan(tx.init(params), grads)


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """What XLA compiles meanwhile, one entry a program."""
    events: list[str] = []
    listening = True

    def note(event: str, seconds: float, **_: Any) -> None:
        if listening and event.endswith("backend_compile_duration"):
            events.append(event)

    # JAX has no public way to take one listener away again.
    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield events
    finally:
        listening = False


@dataclasses.dataclass(frozen=True)
class Identity:
    """Coordinate directions, never stored: at full rank the subspace is the whole space."""

    orthonormal = True

    def init(self, a: int, rank: int, dtype: Any) -> None:
        return None

    def find(self, grad: jax.Array, stored: jax.Array, rank: int, key: jax.Array) -> jax.Array:
        return stored

    def vectors(self, stored: Any, a: int, rank: int, dtype: Any, key: jax.Array) -> jax.Array:
        return jnp.eye(a, rank, dtype=dtype)


@dataclasses.dataclass(frozen=True)
class Kept(fira_jax.basis.Svd):
    """A stored basis whose refresh costs nothing."""

    def find(self, grad: jax.Array, stored: jax.Array, rank: int, key: jax.Array) -> jax.Array:
        return stored


@dataclasses.dataclass(frozen=True)
class LeadingColumns(fira_jax.basis.Svd):
    """A stored basis that is told: the gradient's first columns, as they are."""

    def find(self, grad: jax.Array, stored: jax.Array, rank: int, key: jax.Array) -> jax.Array:
        return grad[:, :rank]


@dataclasses.dataclass(frozen=True)
class Shuffled(fira_jax.basis.Svd):
    """Singular vectors as another linear-algebra library might return them."""

    def find(self, grad: jax.Array, stored: jax.Array, rank: int, key: jax.Array) -> jax.Array:
        vectors = super().find(grad, stored, rank, key)
        signs = jnp.where(jax.random.bernoulli(key, shape=(rank,)), 1, -1).astype(vectors.dtype)
        return jax.random.permutation(key, vectors * signs, axis=1)

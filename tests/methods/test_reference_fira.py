"""Every step of ours in float64 against the released step written out in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference_fira import Adam, ReleasedFira, RMSProp

import fira_jax

SHAPES = {"wide": (7, 10), "tall": (10, 7), "square": (8, 8)}
RANK, GAP, STEPS, LEARNING_RATE = 3, 7, 24, 0.01  # three refreshes after the first basis

RMS = functools.partial(optax.scale_by_rms, decay=0.9, eps=1e-6, eps_in_sqrt=False)
STDDEV = functools.partial(optax.scale_by_stddev, decay=0.9, eps=1e-6, eps_in_sqrt=False)
DIRECTIONS = {
    "adam": (Adam, None),
    "rmsprop": (RMSProp, RMS()),
    "rmsprop with momentum": (
        functools.partial(RMSProp, momentum=0.8),
        optax.chain(RMS(), optax.trace(decay=0.8)),
    ),
    "centered rmsprop": (functools.partial(RMSProp, centered=True), STDDEV()),
}


def gradients(shape: tuple[int, int]) -> np.ndarray:
    rng = np.random.default_rng(shape)
    grads = rng.standard_normal((1, *shape)) + 0.5 * rng.standard_normal((STEPS, *shape))
    grads *= 0.8 ** np.arange(shape[1])
    grads[[5, 16]] *= 20
    return grads


@pytest.mark.parametrize("alpha", [1.0, 0.25])
@pytest.mark.parametrize("name", DIRECTIONS)
def test_trajectory(name, alpha):
    make_direction, base_optimizer = DIRECTIONS[name]
    grads = {key: gradients(shape) for key, shape in SHAPES.items()}
    with jax.enable_x64(True):
        ours = run(
            base_optimizer,
            {key: jnp.asarray(x).swapaxes(1, 2) for key, x in grads.items()},  # (in, out)
            alpha,
        )
    for key, shape in SHAPES.items():
        theirs = ReleasedFira(make_direction(), RANK, GAP, alpha, LEARNING_RATE)
        weight = np.zeros(shape)
        for step in range(STEPS):
            weight = theirs.step(weight, grads[key][step])
            got = np.asarray(ours[key][step]).T
            gap = np.linalg.norm(got - weight) / np.linalg.norm(weight)
            assert gap < 1e-9, (key, step)
        assert theirs.limited > 0, key


@functools.partial(jax.jit, static_argnums=0)
def run(base_optimizer, grads, alpha):
    tx = fira_jax.fira(LEARNING_RATE, RANK, GAP, alpha, base_optimizer, basis="svd")
    params = {name: jnp.zeros(x.shape[1:]) for name, x in grads.items()}

    def step(carry, grad):
        params, state = carry
        updates, state = tx.update(grad, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.lax.scan(step, (params, tx.init(params)), grads)[1]

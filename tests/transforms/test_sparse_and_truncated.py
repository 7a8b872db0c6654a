"""Powerpropagation, SoRA's proximal step, SaRA and TRP against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fira_jax.transforms import (
    in_power_space,
    on_smallest_weights,
    proximal_l1,
    truncate_periodically,
)

RNG = np.random.default_rng(0)
W = RNG.standard_normal((6, 9))
GRADS = RNG.standard_normal((7, 6, 9))


def trained(tx, w=W, grads=GRADS):
    w = jnp.asarray(w, jnp.float32)
    state = tx.init(w)
    step = jax.jit(tx.update)
    for g in grads:
        updates, state = step(jnp.asarray(g, jnp.float32), state, w)
        w = optax.apply_updates(w, updates)
    return np.asarray(w, np.float64), state


@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.5])
def test_power_space_is_training_the_roots(alpha):
    root = np.sign(W) * np.abs(W) ** (1 / alpha)
    velocity = np.zeros_like(root)
    for g in GRADS:
        velocity = 0.9 * velocity + alpha * np.abs(root) ** (alpha - 1) * g
        root = root - 0.02 * velocity
    expected = root * np.abs(root) ** (alpha - 1)
    found, _ = trained(in_power_space(optax.sgd(0.02, momentum=0.9), alpha))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_power_space_is_the_parametrization_differentiated():
    """The same steps as differentiating the loss through the power."""
    target = jnp.asarray(RNG.standard_normal((6, 9)), jnp.float32)

    def loss(w):
        return jnp.sum((w - target) ** 2)

    def model(phi):
        return phi * jnp.abs(phi)

    w = jnp.asarray(W, jnp.float32)
    phi = jnp.sign(w) * jnp.sqrt(jnp.abs(w))
    tx, adam = in_power_space(optax.adam(0.01)), optax.adam(0.01)
    state, adam_state = tx.init(w), adam.init(phi)
    for _ in range(5):
        updates, state = tx.update(jax.grad(loss)(w), state, w)
        w = w + updates
        steps, adam_state = adam.update(jax.grad(lambda p: loss(model(p)))(phi), adam_state)
        phi = phi + steps
    np.testing.assert_allclose(w, model(phi), rtol=2e-4, atol=1e-5)


def test_proximal_step_shrinks_gates_and_nothing_else():
    rate, penalty = 0.1, 0.7
    tx = optax.chain(optax.sgd(rate), proximal_l1(lambda count: rate / (count + 1), penalty))
    params = {"q": {"gate": jnp.asarray(W[0], jnp.float32), "lora_a": jnp.asarray(W, jnp.float32)}}
    gate, factor, state = W[0].copy(), W.copy(), tx.init(params)
    for step, g in enumerate(GRADS):
        grads = {"q": {"gate": jnp.asarray(g[0]), "lora_a": jnp.asarray(g)}}
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        moved = gate - rate * g[0]
        gate = np.sign(moved) * np.maximum(np.abs(moved) - rate / (step + 1) * penalty, 0)
        factor = factor - rate * g
    np.testing.assert_allclose(params["q"]["gate"], gate, atol=1e-6)
    np.testing.assert_allclose(params["q"]["lora_a"], factor, atol=1e-5)


def test_proximal_step_reaches_exact_zeros():
    tx = optax.chain(optax.sgd(0.1), proximal_l1(0.1, 5.0))
    params = {"gate": jnp.asarray([0.2, -0.3, 3.0])}
    updates, _ = tx.update({"gate": jnp.zeros(3)}, tx.init(params), params)
    assert (params["gate"] + updates["gate"]).tolist() == [0.0, 0.0, 2.5]


@pytest.mark.parametrize(("adjust_at", "penalty"), [(None, 0.0), (3, 0.0), (3, 0.2)])
def test_smallest_weights(adjust_at, penalty):
    count = round(0.3 * W.size)
    places = np.sort(np.argsort(np.abs(W).ravel(), kind="stable")[:count])
    start = W.ravel()[places].copy()
    active, w, velocity = np.ones(count, bool), W.ravel().copy(), np.zeros(count)
    for step, g in enumerate(GRADS):
        if step == adjust_at:
            active &= np.abs(w[places]) <= np.abs(start).max()
        grad = g.ravel()[places]
        if penalty:
            change = np.zeros(W.size)
            change[places] = np.where(active, w[places] - start, 0)
            left, values, right = np.linalg.svd(change.reshape(W.shape), full_matrices=False)
            held = values > 1e-6 * values[0] if values[0] > 0 else np.zeros(len(values), bool)
            grad = grad + penalty * ((left * held) @ right).ravel()[places]
        velocity = 0.5 * velocity + np.where(active, grad, 0)
        w[places] -= np.where(active, 0.1 * velocity, 0)
    assert active.all() == (adjust_at is None)  # otherwise some have grown
    tx = on_smallest_weights(optax.sgd(0.1, momentum=0.5), 0.3, adjust_at, penalty)
    found, state = trained(tx)
    np.testing.assert_allclose(found.ravel(), w, atol=1e-4)
    assert sum(x.size for x in jax.tree.leaves(state.inner)) == count
    assert (found.ravel() != W.ravel().astype(np.float32)).sum() <= count


def test_truncation_keeps_the_energy_and_no_more():
    every, energy, rate = 3, 0.9, 0.1
    w, ranks = W.copy(), []
    for step, g in enumerate(GRADS, 1):
        w = w - rate * g
        if step % every == 0:
            left, values, right = np.linalg.svd(w, full_matrices=False)
            rank = int(np.searchsorted(np.cumsum(values**2), energy * np.sum(values**2))) + 1
            w = (left[:, :rank] * np.maximum(values[:rank] - 0.05, 0)) @ right[:rank]
            ranks.append(rank)
    assert max(ranks) < 6
    tx = optax.chain(optax.sgd(rate), truncate_periodically(every, energy, 0.05))
    np.testing.assert_allclose(trained(tx)[0], w, atol=1e-4)
    cut, _ = trained(tx, grads=GRADS[:6])
    assert np.linalg.matrix_rank(cut, tol=1e-4) == ranks[1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: in_power_space(optax.sgd(1.0), 0.5), "alpha must be at least 1"),
        (lambda: on_smallest_weights(optax.sgd(1.0), 0.0), "fraction must be in"),
        (lambda: truncate_periodically(0), "every must be at least 1"),
        (lambda: proximal_l1(0.1, 1.0).init({"w": jnp.ones(3)}), "no parameter is named gate"),
    ],
)
def test_impossible_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "tx",
    [in_power_space(optax.sgd(1.0)), on_smallest_weights(optax.sgd(1.0)), truncate_periodically(2)],
)
def test_parameters_are_asked_for(tx):
    with pytest.raises(ValueError, match="needs params"):
        tx.update(jnp.ones((2, 2)), tx.init(jnp.ones((2, 2))))

"""SoRA, PRILoRA, LoRA-GGPO, EoRA, PELA and Maestro against their formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from experiments.llama.adapters import Frozen
from experiments.llama.eora import compensate, second_moment
from experiments.llama.ggpo import LoRAGGPO
from experiments.llama.maestro import Maestro
from experiments.llama.pela import PELA, distillation_loss
from experiments.llama.prilora import PRILoRA, measured, rising_ranks
from experiments.llama.sora import SoRA
from fira_jax.transforms import proximal_l1

RNG = np.random.default_rng(0)
INPUTS, OUTPUTS, RANK = 12, 8, 4
KERNEL, X = RNG.standard_normal((INPUTS, OUTPUTS)), RNG.standard_normal((40, INPUTS))


def f32(x):
    return jnp.asarray(x, jnp.float32)


def made(cls, **options):
    """An adapter with nothing at its initial value."""
    layer = cls(f32(KERNEL), RANK, alpha=6.0, rngs=nnx.Rngs(0), **options)
    layer.lora_b[...] = f32(RNG.standard_normal((RANK, OUTPUTS)))
    return layer


def factors(layer):
    return (np.asarray(x[...], np.float64) for x in (layer.lora_a, layer.lora_b))


def test_sora():
    layer = made(SoRA)
    gate = np.array([1.5, 0.0, -0.5, 0.0])
    layer.gate[...] = f32(gate)
    a, b = factors(layer)
    expected = X @ (KERNEL + 1.5 * a @ np.diag(gate) @ b)
    np.testing.assert_allclose(layer(f32(X)), expected, atol=1e-4)
    np.testing.assert_allclose(f32(X) @ layer.merged(), expected, atol=1e-4)
    small_a, small_b = layer.pruned()
    assert small_a.shape == (INPUTS, 2)
    np.testing.assert_allclose(X @ KERNEL + X @ (small_a @ small_b), expected, atol=1e-4)


def test_sora_loses_rank_where_the_target_has_less():
    target = f32(X @ (KERNEL + np.outer(RNG.standard_normal(INPUTS), RNG.standard_normal(OUTPUTS))))
    layer = made(SoRA)
    graphdef, params, rest = nnx.split(layer, nnx.Param, ...)
    tx = optax.chain(optax.adam(0.02), proximal_l1(0.02, 0.5))

    def loss(params):
        return jnp.mean((nnx.merge(graphdef, params, rest)(f32(X)) - target) ** 2)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params = nnx.to_pure_dict(params)
    before, state = loss(params), tx.init(params)
    for _ in range(600):
        params, state = step(params, state)
    assert 1 <= np.count_nonzero(params["gate"]) < RANK
    assert loss(params) < 0.2 * before


def test_prilora_masks_ranks_and_prunes_by_importance():
    assert rising_ranks(12, 4, 12)[0] == 4
    assert rising_ranks(12, 4, 12)[-1] == 12
    layer = made(PRILoRA, own_rank=3, decay=0.8)
    a, b = factors(layer)
    kept = X @ (KERNEL + 1.5 * a[:, :3] @ b[:3])
    np.testing.assert_allclose(layer(f32(X)), kept, atol=1e-4)
    np.testing.assert_allclose(f32(X) @ layer.merged(), kept, atol=1e-4)
    energy = np.zeros(INPUTS)
    for part in (X[:20], 3 * X[20:]):
        zero = jnp.zeros(INPUTS)
        told = jax.grad(lambda e, part=part: jnp.sum(measured(f32(part), e) ** 3))(zero)
        layer.observe(told)
        energy = 0.8 * energy + 0.2 * (part**2).mean(0)
    importance = np.abs(a) * np.sqrt(energy)[:, None]
    importance[:, 3] = 0
    np.testing.assert_allclose(layer.importance(), importance, rtol=1e-5)
    layer.prune(0.5)
    pruned = np.asarray(layer.lora_a[...])
    for column in range(3):
        least = np.argsort(importance[:, column])[: INPUTS // 2]
        assert set(np.flatnonzero(pruned[:, column] == 0)) == set(least)
    graph = nnx.grad(lambda m: jnp.sum(m(f32(X)) ** 2))(layer)
    assert not np.any(graph["lora_a"][...][:, 3])
    assert np.any(graph["lora_a"][...][:, 2])


def test_ggpo_noise():
    layer = made(LoRAGGPO, sigma=0.1, beta=0.3)
    squares = RNG.standard_normal((RANK, OUTPUTS)) ** 2
    layer.observe(f32(squares))
    norms = np.sqrt(squares.sum(0))
    a, b = factors(layer)
    weight = np.linalg.norm(KERNEL + 1.5 * a @ b, axis=0)
    size = 0.3 * weight + 0.7 * weight.mean() / norms.mean() * norms
    expected = 0.1 * size / np.sqrt(INPUTS)
    np.testing.assert_allclose(layer.deviation(), expected, rtol=1e-4)
    clean = layer(jnp.eye(INPUTS))
    layer.training = True
    many = []
    for _ in range(200):
        layer.redraw()
        many.append(layer(jnp.eye(INPUTS)) - clean)
    np.testing.assert_allclose(np.std(np.stack(many), axis=(0, 1)), expected, rtol=0.1)
    assert abs(np.mean(np.stack(many))) < 0.01


def test_ggpo_without_gradients_seen_is_shaken_by_weights_alone():
    layer = made(LoRAGGPO, sigma=0.1, beta=1.0)
    a, b = factors(layer)
    expected = 0.1 * np.linalg.norm(KERNEL + 1.5 * a @ b, axis=0) / np.sqrt(INPUTS)
    np.testing.assert_allclose(layer.deviation(), expected, rtol=1e-4)


def test_eora_is_the_best_compensation():
    inputs = (
        X @ np.diag(np.logspace(0, -1.5, INPUTS)) @ np.linalg.qr(RNG.standard_normal((12, 12)))[0]
    )
    compressed = np.round(KERNEL * 2) / 2
    a, b = compensate(f32(KERNEL), f32(compressed), second_moment(f32(inputs)), RANK)
    # In float64: the outputs' error, cut to rank r, is what no factors can go below.
    wanted = inputs @ (KERNEL - compressed)
    values = np.linalg.svd(wanted, compute_uv=False)
    least = np.sqrt(np.sum(values[RANK:] ** 2))
    found = np.linalg.norm(wanted - inputs @ np.asarray(a, np.float64) @ np.asarray(b, np.float64))
    np.testing.assert_allclose(found, least, rtol=1e-3)
    left, singular, right = np.linalg.svd(KERNEL - compressed)
    plain = left[:, :RANK] * singular[:RANK] @ right[:RANK]
    assert found < 0.95 * np.linalg.norm(wanted - inputs @ plain)


@pytest.mark.parametrize("rank", [0, 9])
def test_eora_refuses_impossible_ranks(rank):
    with pytest.raises(ValueError, match="rank must be"):
        compensate(f32(KERNEL), f32(KERNEL), jnp.eye(INPUTS), rank)
    with pytest.raises(ValueError, match="needs a compressed one"):
        compensate(f32(KERNEL), f32(KERNEL), jnp.eye(3), 2)


def test_pela_starts_at_the_best_and_is_taught_the_features():
    left, values, right = np.linalg.svd(KERNEL, full_matrices=False)
    best = left[:, :RANK] * values[:RANK] @ right[:RANK]
    layer = PELA(f32(KERNEL), RANK)
    np.testing.assert_allclose(layer.merged(), best, atol=1e-5)
    far = np.sum((best - KERNEL) ** 2) / np.sum(KERNEL**2)
    np.testing.assert_allclose(layer.perturbation(), far, rtol=1e-4)
    wanted = X @ KERNEL
    layer.set_attributes(teaching=True)
    np.testing.assert_allclose(layer(f32(X)), wanted, atol=1e-4)
    layer.set_attributes(teaching=False)
    expected = np.mean((X @ best - wanted) ** 2) / np.mean(wanted**2)
    loss = distillation_loss(layer(f32(X)), f32(wanted))
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    teaching = nnx.grad(lambda m: distillation_loss(m(f32(X)), f32(wanted)))(layer)
    params = nnx.state(layer, nnx.Param)
    nnx.update(layer, jax.tree.map(lambda p, g: p - 0.1 * g, params, teaching))
    assert distillation_loss(layer(f32(X)), f32(wanted)) < loss
    of_teacher = jax.grad(lambda w: distillation_loss(layer(f32(X)), w))(f32(wanted))
    assert not np.any(of_teacher)


def test_maestro_orders_its_directions():
    layer = Maestro(INPUTS, OUTPUTS, RANK, rngs=nnx.Rngs(0))
    a, b = np.asarray(layer.a[...], np.float64), np.asarray(layer.b[...], np.float64)
    np.testing.assert_allclose(layer(f32(X)), X @ a @ b, atol=1e-4)
    possible = [X @ a[:, :k] @ b[:k] for k in range(1, RANK + 1)]
    seen = set()
    layer.training = True
    for _ in range(30):
        layer.redraw()
        y = np.asarray(layer(f32(X)))
        seen.add(int(np.argmin([np.abs(y - p).max() for p in possible])))
        assert min(np.abs(y - p).max() for p in possible) < 1e-4
    assert seen == set(range(RANK))
    layer.training = False
    penalty = sum(np.linalg.norm(a[:, k:]) + np.linalg.norm(b[k:]) for k in range(RANK))
    np.testing.assert_allclose(layer.penalty(), penalty, rtol=1e-5)
    layer.a[...] = layer.a[...].at[:, 2:].set(0)
    assert all(
        np.isfinite(g).all() for g in jax.tree.leaves(nnx.grad(lambda m: m.penalty())(layer))
    )
    small_a, small_b = layer.pruned(1e-6)
    assert small_a.shape == (INPUTS, 2)
    np.testing.assert_allclose(X @ (small_a @ small_b), layer(f32(X)), atol=1e-4)


def test_what_is_not_trained_is_frozen():
    for layer in (made(PRILoRA), made(LoRAGGPO)):
        trained = nnx.to_pure_dict(nnx.state(layer, nnx.Param))
        assert set(trained) == {"lora_a", "lora_b"}
        assert len(jax.tree.leaves(nnx.state(layer, Frozen))) >= 2

"""Adapters and factorized layers: what they compute, what they merge to, what they train."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import fira_jax
from experiments.llama.adapters import (
    DoRA,
    Frozen,
    LoRA,
    LoRAXS,
    merge_and_restart,
    prune_moments,
    start_lora_ga,
    start_lora_sb,
    with_restarts,
)
from experiments.llama.factorized import LOST, CoLA, Factorized, SLTrain
from experiments.llama.rank_profile import rank_profile

INPUTS, OUTPUTS, RANK, CHANNELS = 10, 8, 3, 4


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


KERNEL, X = normal(0, INPUTS, OUTPUTS), normal(1, 5, INPUTS)


def lora(cls=LoRA, **options):
    return cls(KERNEL, RANK, alpha=6.0, rngs=nnx.Rngs(0), **options)


def xs():
    return LoRAXS(KERNEL, normal(2, INPUTS, RANK), normal(3, RANK, RANK), normal(4, RANK, OUTPUTS))


SIZES = {"inputs": INPUTS, "outputs": OUTPUTS, "rank": RANK}
BOTH = RANK * (INPUTS + OUTPUTS)
LAYERS = {
    "LoRA": (lora, BOTH),
    "DoRA": (lambda: lora(DoRA), BOTH + OUTPUTS),
    "LoRA-XS": (xs, RANK**2),
    "factorized": (lambda: Factorized(**SIZES, rngs=nnx.Rngs(0)), BOTH),
    "SLTrain": (lambda: SLTrain(**SIZES, density=0.1, rngs=nnx.Rngs(0)), BOTH + 8),
    "CoLA": (lambda: CoLA(**SIZES, rngs=nnx.Rngs(0)), BOTH),
    "LOST": (lambda: LOST(KERNEL, RANK, CHANNELS), BOTH + CHANNELS * OUTPUTS),
}


def moved(layer):
    """The layer after its parameters have left where they started."""
    params = nnx.state(layer, nnx.Param)
    nnx.update(layer, jax.tree.map(lambda x: x + 0.3 * normal(9, *x.shape), params))
    return layer


@pytest.mark.parametrize("name", LAYERS)
def test_trained_parameters(name):
    build, count = LAYERS[name]
    layer = build()
    assert sum(x.size for x in jax.tree.leaves(nnx.state(layer, nnx.Param))) == count
    grads = nnx.grad(lambda m: jnp.sum(m(X) ** 2))(moved(layer))
    assert all(np.asarray(g).any() for g in jax.tree.leaves(grads))
    assert len(jax.tree.leaves(grads)) == len(jax.tree.leaves(nnx.state(layer, nnx.Param)))


@pytest.mark.parametrize("name", sorted(LAYERS.keys() - {"CoLA", "LOST"}))
def test_merged_kernel_computes_the_same(name):
    layer = moved(LAYERS[name][0]())
    np.testing.assert_allclose(layer(X), X @ layer.merged(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cls", [LoRA, DoRA])
def test_adapters_start_as_the_weight(cls):
    np.testing.assert_allclose(lora(cls)(X), X @ KERNEL, rtol=1e-5, atol=1e-6)
    assert np.abs(lora().lora_a[...]).max() < INPUTS**-0.5
    assert lora().scaling == 2.0
    assert lora(rank_stabilised=True).scaling == pytest.approx(6 / RANK**0.5)


def test_dora_s_lengths_are_its_magnitudes():
    layer = moved(lora(DoRA))
    np.testing.assert_allclose(
        jnp.linalg.norm(layer.merged(), axis=0), jnp.abs(layer.magnitude[...]), rtol=1e-5
    )

    def gradient(norm_gradient):
        layer = moved(lora(DoRA, norm_gradient=norm_gradient))
        return nnx.grad(lambda m: jnp.sum(m(X) ** 2))(layer)["lora_a"][...]

    # With the norm differentiated, no step can change lengths: gradients of the direction only.
    assert not np.allclose(gradient(True), gradient(False), rtol=0.1)


@pytest.mark.parametrize("direction", ["ArB2r", "A2rBr", "ArBr"])
def test_lora_ga_starts_along_the_gradient_and_changes_nothing(direction):
    layer, gradient = lora(), normal(5, INPUTS, OUTPUTS)
    start_lora_ga(layer, gradient, direction=direction)
    np.testing.assert_allclose(layer(X), X @ KERNEL, rtol=1e-4, atol=1e-4)
    left, _, right = np.linalg.svd(np.asarray(gradient, float), full_matrices=False)
    used_a = np.abs(left.T @ np.asarray(layer.lora_a[...])).sum(axis=1) > 1e-4
    used_b = np.abs(right @ np.asarray(layer.lora_b[...]).T).sum(axis=1) > 1e-4
    expected_a = {"ArB2r": [0, 1, 2], "A2rBr": [3, 4, 5], "ArBr": [1, 3, 5]}[direction]
    assert np.flatnonzero(used_a).tolist() == expected_a
    assert np.flatnonzero(used_b).tolist() == sorted(set(range(6)) - set(expected_a))
    np.testing.assert_allclose(
        jnp.linalg.norm(layer.lora_a[...], axis=0), OUTPUTS**0.25 / 4, rtol=1e-5
    )


def test_lora_ga_s_first_step_follows_the_gradient():
    """The first change of the weight is the gradient, cut to its 2r leading directions."""
    layer, gradient = lora(), normal(5, INPUTS, OUTPUTS)
    start_lora_ga(layer, gradient)
    a, b = layer.lora_a[...], layer.lora_b[...]
    change = gradient @ b.T @ b + a @ a.T @ gradient
    left, values, right = np.linalg.svd(np.asarray(gradient, float), full_matrices=False)
    best = (left[:, : 2 * RANK] * values[: 2 * RANK]) @ right[: 2 * RANK]
    np.testing.assert_allclose(change, best * OUTPUTS**0.5 / 16, rtol=1e-3, atol=1e-4)


def test_lora_sb_starts_at_the_cut_step():
    gradient = normal(6, INPUTS, OUTPUTS)
    layer = start_lora_sb(KERNEL, gradient, OUTPUTS, learning_rate=0.1)
    np.testing.assert_allclose(layer.merged(), KERNEL - 0.1 * jnp.sign(gradient), atol=1e-5)
    small = start_lora_sb(KERNEL, gradient, 2, learning_rate=0.1)
    left, values, right = np.linalg.svd(-0.1 * np.sign(np.asarray(gradient, float)))
    cut = (left[:, :2] * values[:2]) @ right[:2]
    np.testing.assert_allclose(small.merged() - KERNEL, cut, atol=1e-5)
    np.testing.assert_allclose(small.a[...].T @ small.a[...], np.eye(2), atol=1e-5)


def test_relora_restarts_without_a_jump():
    layer = moved(lora())
    before, old = layer(X), layer.lora_a[...]
    merge_and_restart(layer, nnx.Rngs(1))
    np.testing.assert_allclose(layer(X), before, rtol=1e-4, atol=1e-4)
    assert not layer.lora_b[...].any()
    assert not np.allclose(layer.lora_a[...], old)
    assert isinstance(layer.kernel, Frozen)


@pytest.mark.parametrize("by", ["random", "magnitude"])
def test_pruned_moments(by):
    params = {"lora_a": normal(0, 100, 40)}
    tx = optax.chain(optax.clip(10.0), optax.adam(0.1))
    _, state = tx.update(params, tx.init(params), params)
    pruned = prune_moments(state, jax.random.key(0), fraction=0.9, by=by)
    for name in ("mu", "nu"):
        before, after = (np.asarray(optax.tree.get(s, name)["lora_a"]) for s in (state, pruned))
        kept = after != 0
        assert kept.mean() == pytest.approx(0.1, abs=0.02)
        np.testing.assert_array_equal(after[kept], before[kept])
        if by == "magnitude":
            assert np.abs(before[kept]).min() > np.abs(before[~kept]).max()
    with pytest.raises(ValueError, match="by must be one of"):
        prune_moments(state, jax.random.key(0), by="size")


def test_schedule_warms_up_again_after_each_restart():
    schedule = with_restarts(optax.constant_schedule(2.0), every=10, warmup=4)
    got = [float(schedule(t)) for t in (0, 9, 10, 11, 12, 14, 19, 20, 23)]
    assert got == [2, 2, 0, 0.5, 1, 2, 2, 0, 1.5]


def test_cola_has_its_nonlinearity_inside_and_keeps_less_if_asked():
    layer = CoLA(**SIZES, rngs=nnx.Rngs(0))
    inside = X @ layer.a[...]
    expected = (inside * jax.nn.sigmoid(inside)) @ layer.b[...]
    np.testing.assert_allclose(layer(X), expected, rtol=1e-5, atol=1e-6)
    again = CoLA(**SIZES, remat=True, rngs=nnx.Rngs(0))
    for x, y in zip(
        *(jax.tree.leaves(nnx.grad(lambda m: jnp.sum(m(X) ** 2))(m)) for m in (layer, again)),
        strict=True,
    ):
        np.testing.assert_allclose(x, y, rtol=1e-5)
    with pytest.raises(TypeError, match="no merged kernel"):
        layer.merged()
    wide = CoLA(400, 600, 16, rngs=nnx.Rngs(0))
    assert np.var(wide.a[...] @ wide.b[...]) == pytest.approx(1 / 1000, rel=0.1)


def test_sltrain_is_sparse_plus_low_rank_and_keeps_no_dense_weight():
    layer = SLTrain(**SIZES, density=0.1, rngs=nnx.Rngs(0))
    assert np.count_nonzero(layer.merged()) == 8  # B starts at zero
    assert len(np.unique(layer.places[...])) == 8
    layer = moved(layer)
    sparse = np.zeros(INPUTS * OUTPUTS)
    sparse[layer.places[...]] = layer.values[...]
    expected = layer.a[...] @ layer.b[...] * 16 / RANK + sparse.reshape(INPUTS, OUTPUTS)
    np.testing.assert_allclose(layer.merged(), expected, rtol=1e-5, atol=1e-5)

    graphdef, state = nnx.split(layer)

    def kept(f):
        _, pullback = jax.vjp(lambda s, x: f(nnx.merge(graphdef, s), x), state, X)
        return [x.shape for x in jax.tree.leaves(pullback)]

    assert (INPUTS, OUTPUTS) in kept(lambda m, x: x @ m.merged())
    assert (INPUTS, OUTPUTS) not in kept(lambda m, x: m(x))
    with pytest.raises(ValueError, match="density must be in"):
        SLTrain(**SIZES, density=0.0, rngs=nnx.Rngs(0))


def test_lost_keeps_the_channels_that_its_factors_describe_worst():
    layer = LOST(KERNEL, RANK, CHANNELS, gamma=0.25)
    left, values, right = np.linalg.svd(np.asarray(KERNEL, float), full_matrices=False)
    best = (left[:, :RANK] * values[:RANK]) @ right[:RANK]
    np.testing.assert_allclose(layer.a[...] @ layer.b[...], best, atol=1e-5)
    rest = np.linalg.norm(KERNEL - best, axis=1)
    chosen = np.sort(np.argsort(rest)[-CHANNELS:])
    np.testing.assert_array_equal(layer.channels[...], chosen)
    low_rank = jax.nn.silu(X @ layer.a[...]) @ layer.b[...]
    expected = 0.25 * low_rank + 0.75 * X[:, chosen] @ KERNEL[chosen]
    np.testing.assert_allclose(layer(X), expected, rtol=1e-4, atol=1e-5)


def test_lora_pro_trains_the_adapter():
    """The names that LoRA-Pro looks for are those of the module."""
    layer = lora()
    target = normal(8, 5, OUTPUTS)
    tx = fira_jax.lora_pro(0.02, layer.scaling, moments="factors")
    optimizer = nnx.Optimizer(layer, tx, wrt=nnx.Param)

    @nnx.jit
    def step(layer, optimizer):
        value, grads = nnx.value_and_grad(lambda m: jnp.mean((m(X) - target) ** 2))(layer)
        optimizer.update(layer, grads)
        return value

    losses = [float(step(layer, optimizer)) for _ in range(60)]
    assert losses[-1] < 0.2 * losses[0]
    np.testing.assert_array_equal(layer.kernel[...], KERNEL)


def test_rank_profile_goes_to_low_rank():
    weights = {
        "steep": np.stack([np.diag(0.5 ** np.arange(8)), np.diag(0.4 ** np.arange(8))]),
        "flat": np.diag(np.linspace(1.0, 0.7, 8)),
    }
    ranks = rank_profile(weights, keep=0.4)
    assert ranks["steep"] < ranks["flat"]
    everything = 2 * ranks["steep"] + ranks["flat"]
    assert everything == pytest.approx(0.4 * 24, abs=2)  # a stack's ranks are rounded up
    tx = fira_jax.galore(0.1, ranks, weight_dimension_numbers=fira_jax.match_paths())
    shapes = {name: jax.ShapeDtypeStruct(x.shape, jnp.float32) for name, x in weights.items()}
    table = fira_jax.describe(tx, shapes)
    assert {row.path: row.view.rank for row in table.rows} == ranks
    assert rank_profile(weights, keep=1.0) == {"steep": 8, "flat": 8}
    with pytest.raises(ValueError, match="keep must be in"):
        rank_profile(weights, keep=0.0)

"""The orthogonal factor of what is in the subspace, exactly and nearly."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import normal, with_spectrum

import fira_jax
from fira_jax.newton_schulz import quintic
from fira_jax.transforms import orthogonalize
from fira_jax.transforms.orthogonalization import polar


def step(grad, *args, **options):
    low_rank = fira_jax.LowRank(4, scale=1.0, basis="svd")
    tx = optax.chain(
        fira_jax.low_rank_project(low_rank),
        orthogonalize(*args, **options),
        fira_jax.project_back(),
    )
    return np.asarray(tx.update(grad, tx.init(grad))[0])


def test_the_exact_factor():
    grad = with_spectrum(0, 4, 9, np.array([5.0, 1.0, 0.1, 1e-3]))
    u, _, vt = np.linalg.svd(grad.astype(np.float64), full_matrices=False)
    np.testing.assert_allclose(step(grad, "svd", size="none"), u @ vt, atol=1e-3)


def test_what_is_not_there_stays_away():
    grad = with_spectrum(1, 4, 9, np.array([5.0, 1.0]))
    values = np.linalg.svd(step(grad, "svd", size="none"), compute_uv=False)
    np.testing.assert_allclose(values, [1, 1, 0, 0], atol=1e-5)
    assert not step(jnp.zeros((4, 9)), "svd").any()
    assert not step(jnp.zeros((4, 9))).any()


def test_the_iteration_comes_near_and_lags_on_small_directions():
    grad = with_spectrum(2, 4, 9, np.array([1.0, 0.5, 0.2, 1e-4]))
    values = np.linalg.svd(step(grad, size="none"), compute_uv=False)
    assert np.all((values[:3] > 0.6) & (values[:3] < 1.25))
    assert values[3] < 0.1
    more = np.linalg.svd(step(grad, ns_steps=10, size="none"), compute_uv=False)
    assert np.all((more > 0.6) & (more < 1.25))


@pytest.mark.parametrize(
    ("size", "shape", "factor"),
    [
        ("muon", (4, 9), 1.5),
        ("muon", (9, 4), 1.0),
        ("rms", (4, 9), 0.6),
        ("rms", (9, 4), 0.6),
        ("none", (4, 9), 1.0),
    ],
)
def test_sizes(size, shape, factor):
    values = np.linalg.svd(step(normal(3, *shape), "svd", size=size), compute_uv=False)
    np.testing.assert_allclose(values, [factor] * 4, rtol=1e-4)


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match="factor must be one of"):
        orthogonalize("qr")
    with pytest.raises(ValueError, match="size must be one of"):
        orthogonalize(size="big")


@pytest.mark.parametrize("shape", [(3, 5), (4, 4), (2, 3, 7)])
@pytest.mark.parametrize("equal", [False, True])
def test_the_exact_factor_has_its_derivative_even_where_singular_values_are_equal(shape, equal):
    rng = np.random.default_rng(0)
    with jax.enable_x64():
        x = rng.normal(size=shape)
        if equal:
            u, _, vt = np.linalg.svd(x, full_matrices=False)
            x = 2 * u @ vt
        change = rng.normal(size=shape)
        _, found = jax.jvp(polar, (jnp.asarray(x),), (jnp.asarray(change),))
        step = 1e-6
        differences = (polar(x + step * change) - polar(x - step * change)) / (2 * step)
        np.testing.assert_allclose(found, differences, atol=1e-7)


def test_layers_of_a_stack_do_not_see_each_other():
    stack = np.stack([normal(0, 3, 5), 100 * normal(1, 3, 5)])
    together = quintic(jnp.asarray(stack), 5)
    for one, alone in zip(together, stack, strict=True):
        np.testing.assert_allclose(one, quintic(jnp.asarray(alone), 5), atol=1e-5)


def test_the_exact_factor_has_no_direction_that_the_matrix_has_not():
    one = np.outer(np.arange(1.0, 4), np.ones(5)).astype(np.float32)
    np.testing.assert_allclose(np.linalg.svd(polar(one))[1], [1, 0, 0], atol=1e-5)


def test_the_exact_factor_of_nothing_and_of_one_direction_has_a_finite_derivative():
    one = np.outer(np.arange(1.0, 4), np.ones(5)).astype(np.float32)
    for x in (np.zeros((3, 5), np.float32), one):
        gradient = jax.grad(lambda x: jnp.sum(polar(x) ** 3))(x)
        assert np.isfinite(gradient).all()

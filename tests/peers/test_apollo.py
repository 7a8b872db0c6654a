"""Trajectories of the published APOLLO, with the same random vectors given to both."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from apollo_torch import APOLLOAdamW
from apollo_torch.random_projector import GradientProjector

import fira_jax

STEPS, RANK, TOLERANCE = 24, 3, 1e-4


@dataclasses.dataclass(frozen=True)
class Given(fira_jax.basis.Random):
    """The vectors that the published projector was given too."""

    seed: int = 0

    def vectors(self, stored, a, rank, dtype, key):
        return jnp.asarray(draw(self.seed, a, rank), dtype)


def draw(seed, a, rank):
    return np.random.default_rng(seed).normal(size=(a, rank)).astype(np.float32) / rank**0.5


@pytest.fixture
def same_vectors(monkeypatch):
    def given(self, weights, rank, type, **_):  # noqa: A002
        m, n = weights.shape
        vectors = draw(0, m if type == "left" else n, rank)
        return torch.tensor(vectors if type == "left" else vectors.T)

    monkeypatch.setattr(GradientProjector, "get_orthogonal_matrix", given)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("granularity", ["column", "matrix"])
@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16)], ids=str)
def test_trajectory(same_vectors, shape, granularity):
    rng = np.random.default_rng(1)
    weight = torch.nn.Parameter(torch.zeros(shape))
    group = {
        "params": [weight],
        "rank": RANK,
        "proj": "random",
        "proj_type": "std",
        "scale_type": {"column": "channel", "matrix": "tensor"}[granularity],
        "scale": 4.0,
        "update_proj_gap": 1000,
    }
    released = APOLLOAdamW([group], lr=0.1)

    tx = fira_jax.apollo(0.1, RANK, 1000, 4.0, granularity=granularity, basis=Given())
    params = jnp.zeros(shape[::-1])
    state, update, tripped = tx.init(params), jax.jit(tx.update), False
    for step in range(STEPS):
        grad = rng.normal(size=shape).astype(np.float32)
        grad *= 10 if step == STEPS // 2 else 1
        weight.grad = torch.tensor(grad)
        before = float(state[3].previous)
        released.step()
        updates, state = update(jnp.asarray(grad.T), state, params)
        params = params + updates
        tripped |= np.isclose(float(state[3].previous), 1.01 * before, rtol=1e-4)

    theirs = weight.detach().numpy().T
    assert tripped, "the limiter never acted"
    assert np.abs(params - theirs).max() <= TOLERANCE * np.abs(theirs).max()


def test_mini_is_one_scale_from_a_sketch_of_rank_one():
    params = {"w": jnp.zeros((8, 16))}
    grads = {"w": jax.random.normal(jax.random.key(0), (8, 16))}
    tx = fira_jax.apollo_mini(1.0)
    updates, state = tx.update(grads, tx.init(params), params)
    ratio = np.asarray(updates["w"] / grads["w"])
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-5)
    assert state[1].mu["w"].shape == (1, 16)

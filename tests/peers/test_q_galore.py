"""Trajectories of the published Q-GaLore: 4-bit bases, lazy refreshes, and bitsandbytes' Adam."""

import warnings
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from bitsandbytes.optim.optimizer import Optimizer2State
    from q_galore_torch import QGaLoreAdamW8bit
    from q_galore_torch.q_galore_projector import GaLoreProjector

import fira_jax
from tests.peers.parity import relative_gap

STEPS, RANK, GAP, RATE, ALPHA = 40, 8, 2, 0.02, 0.25
# (out, in). One group of 256 holds the whole basis: ours run along the rows of [a, r], while theirs
# run along those of [r, a] where the input side is compressed.
SHAPES = {"wide": (32, 48), "tall": (48, 32), "square": (32, 32)}


class Released(QGaLoreAdamW8bit):
    """The package on a newer bitsandbytes than it knows, whose own step of Adam it then takes."""

    def update_step(self, group, p, gindex, pindex, flag_use_float_grad=False):
        Optimizer2State.update_step(self, group, p, gindex, pindex)


def gradients():
    """One strong direction that stays, so that gaps double, and others that come and go."""
    rng = np.random.default_rng(0)
    found = {}
    for name, (m, n) in SHAPES.items():
        lasting = np.outer(rng.standard_normal(m), rng.standard_normal(n))
        decay = 0.9 ** np.arange(min(m, n))[: n if n <= m else None]
        noise = rng.standard_normal((STEPS, m, n))
        noise = noise * decay if n <= m else noise * decay[:, None]
        found[name] = (lasting + noise).astype(np.float32)
    return found


def canonical_signs(self, weights, rank, type):  # noqa: A002
    left, _, right = np.linalg.svd(weights.numpy(), full_matrices=False)
    vectors = left[:, :rank] if type == "left" else right[:rank].T
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(0), range(rank)])
    return torch.tensor(np.ascontiguousarray(vectors if type == "left" else vectors.T))


def released(min_8bit_size):
    """Weights after each step, and the gaps at the end."""
    weights = {name: torch.nn.Parameter(torch.zeros(shape)) for name, shape in SHAPES.items()}
    group = {
        "params": list(weights.values()),
        "rank": RANK,
        "update_proj_gap": GAP,
        "scale": ALPHA,
        "proj_type": "std",
        "quant": True,
        "quant_group_size": 256,
        "quant_n_bit": 4,
        "cos_threshold": 0.4,
        "gamma_proj": 2,
        "queue_size": 5,
    }
    # The arguments' places have come to mean something else in bitsandbytes.
    neutral = {"percentile_clipping": 0.0, "block_wise": False}
    tx = Released([group], lr=RATE, weight_decay=0.0, min_8bit_size=min_8bit_size, **neutral)
    walked = {name: [] for name in SHAPES}
    with (
        mock.patch.object(torch.cuda, "synchronize"),
        mock.patch.object(GaLoreProjector, "get_orthogonal_matrix", canonical_signs),
    ):
        for step in range(STEPS):
            for name, grad in gradients().items():
                weights[name].grad = torch.tensor(grad[step])
            tx.step()
            for name, weight in weights.items():
                walked[name].append(weight.detach().numpy().T.copy())
    gaps = {name: tx.state[w]["projector"].update_proj_gap for name, w in weights.items()}
    return walked, gaps


def ours(min_size):
    """The same of ours."""
    tx = fira_jax.q_galore(
        RATE, RANK, GAP, ALPHA, basis="svd", min_size=min_size, rounding="nearest"
    )

    @jax.jit
    def run(grads):
        def step(carry, grad):
            params, state = carry
            updates, state = tx.update(grad, state, params)
            params = jax.tree.map(jnp.add, params, updates)
            return (params, state), params

        params = jax.tree.map(lambda g: jnp.zeros(g.shape[1:]), grads)
        (_, state), walked = jax.lax.scan(step, (params, tx.init(params)), grads)
        return walked, {name: memory.gap for name, memory in state[0].memory.items()}

    return run({name: grad.swapaxes(1, 2) for name, grad in gradients().items()})


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(("smallest", "tolerance"), [(10**9, 1e-4), (1, 0.1)])
def test_trajectory(smallest, tolerance):
    """With moments in float32; and in 8 bits, where each has levels of its own."""
    theirs, their_gaps = released(smallest)
    found, gaps = ours(smallest)
    start = {name: np.zeros(shape).T for name, shape in SHAPES.items()}
    for name in SHAPES:
        assert int(gaps[name]) == their_gaps[name] > GAP
        gap = relative_gap(np.asarray(found[name]), theirs[name], start[name])
        assert gap <= tolerance, (name, gap)
        assert tolerance < 1e-3 or gap > 1e-3  # 8 bits were used

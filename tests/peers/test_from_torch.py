"""A run begun by a released PyTorch optimizer and gone on with by ours."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from apollo_torch import APOLLOAdamW

import fira_jax
from tests.peers import released
from tests.peers.parity import relative_gap

BEFORE, AFTER, RANK, RATE, ALPHA = 13, 20, 3, 0.01, 0.25
SHAPES = {"wide": (12, 20), "tall": (20, 12), "square": (16, 16), "bias": (20,)}  # (out, in)


def gradients():
    rng = np.random.default_rng(0)
    count = BEFORE + AFTER
    return {
        name: rng.standard_normal((count, *shape)).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def as_numpy(state):
    """What the guide tells readers to write for each parameter."""
    entry = {k: v.numpy() if torch.is_tensor(v) else v for k, v in state.items()}
    projector = entry.pop("projector", None)
    if projector is not None:
        entry["ortho_matrix"] = projector.ortho_matrix.numpy()
    return entry


def begun(optimizer, params, grads):
    """Runs PyTorch to the end; the weights and states on the way, and the last weights."""
    for step in range(BEFORE + AFTER):
        if step == BEFORE:
            weights = {name: p.detach().numpy().T.copy() for name, p in params.items()}
            states = {name: as_numpy(optimizer.state[p]) for name, p in params.items()}
            states = jax.tree.map(np.copy, states)
        for name, p in params.items():
            p.grad = torch.tensor(grads[name][step])
        optimizer.step()
    return weights, states, {name: p.detach().numpy().T for name, p in params.items()}


def go_on(tx, weights, states, grads, **options):
    """By ours, for the rest of the steps."""
    params = jax.tree.map(jnp.asarray, weights)
    state, update = fira_jax.from_torch(tx, params, states, **options), jax.jit(tx.update)
    for step in range(BEFORE, BEFORE + AFTER):
        updates, state = update({k: g[step].T for k, g in grads.items()}, state, params)
        params = optax.apply_updates(params, updates)
    return params


def torch_parameters():
    return {name: torch.nn.Parameter(torch.zeros(shape)) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("gap", [200, 10], ids=["no refresh", "refreshes"])
@pytest.mark.parametrize("package", ["fira", "galore"])
def test_the_next_steps_agree(package, gap):
    grads, params = gradients(), torch_parameters()
    projected = [p for p in params.values() if p.ndim == 2]
    with released.canonical_signs(package):
        optimizer = released.optimizer(
            package, projected, [params["bias"]], rank=RANK, gap=gap, alpha=ALPHA, lr=RATE
        )
        weights, states, expected = begun(optimizer, params, grads)
    tx = getattr(fira_jax, package)(RATE, RANK, gap, ALPHA, basis="svd")
    got = go_on(tx, weights, states, grads)
    gaps = {name: relative_gap([got[name]], [expected[name]], weights[name]) for name in SHAPES}
    assert max(gaps.values()) < 1e-4, gaps
    # And not because the state does not matter.
    states["wide"]["exp_avg"] *= 0
    fresh = go_on(tx, weights, states, grads)
    assert relative_gap([fresh["wide"]], [expected["wide"]], weights["wide"]) > 1e-2


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_apollo_goes_on_in_the_sketch_it_is_given():
    grads, params = gradients(), torch_parameters()
    group = {
        "params": [p for p in params.values() if p.ndim == 2],
        "rank": RANK,
        "proj": "random",
        "proj_type": "std",
        "scale_type": "channel",
        "scale": 4.0,
        "update_proj_gap": 200,
    }
    optimizer = APOLLOAdamW([group, {"params": [params["bias"]]}], lr=RATE)
    weights, states, expected = begun(optimizer, params, grads)
    tx = fira_jax.apollo(RATE, RANK, 200, 4.0, basis="svd")
    stored = go_on(tx, weights, states, grads, limiter_scale=2.0)
    gaps = {name: relative_gap([stored[name]], [expected[name]], weights[name]) for name in SHAPES}
    assert max(gaps.values()) < 1e-4, gaps
    # The sketch that is not stored is another one, as after a refresh.
    anew = go_on(fira_jax.apollo(RATE, RANK, 200, 4.0), weights, states, grads)
    assert relative_gap([anew["wide"]], [expected["wide"]], weights["wide"]) > 1e-2


def test_stacks_schedules_and_wrappers():
    entries = [
        {"step": 5, "exp_avg": i + np.ones((20, 3)), "exp_avg_sq": np.ones((20, 3)),
         "ortho_matrix": np.eye(3, 12), "scaling_grad": 2.0 + i}
        for i in range(4)
    ]  # fmt: skip
    numbers = optax.contrib.MuonDimensionNumbers(-2, -1)
    tx = optax.chain(
        optax.clip(1.0),
        fira_jax.fira(
            optax.linear_schedule(1.0, 0.0, 10), 3, basis="svd", weight_dimension_numbers=numbers
        ),
    )
    state = fira_jax.from_torch(tx, {"w": jnp.zeros((4, 12, 20))}, {"w": entries})
    assert {int(x) for _, x in optax.tree.get_all_with_path(state, "count")} == {5}
    np.testing.assert_array_equal(optax.tree.get(state, "previous")["w"], [2, 3, 4, 5])
    np.testing.assert_array_equal(optax.tree.get(state, "mu")["w"][:, 0, 0], [1, 2, 3, 4])
    assert optax.tree.get(state, "bases")["w"].shape == (4, 12, 3)


def test_what_is_missing_or_does_not_fit_is_named():
    tx, params = fira_jax.galore(0.1, 3, basis="svd"), {"w": jnp.zeros((12, 20))}
    entry = {"step": 1, "exp_avg": np.ones((20, 3)), "exp_avg_sq": np.ones((20, 3))}
    for states, message in (
        ({"v": entry}, "no state for parameter 'w', only for: v"),
        ({"w": entry}, "of parameter 'w' lacks 'ortho_matrix'"),
        ({"w": [entry, entry]}, r"'w' with shape \(12, 20\) consists of 1 matrices, got 2"),
        ({"w": {**entry, "ortho_matrix": np.eye(4, 12)}}, r"ortho_matrix of parameter 'w' .*12, 3"),
    ):
        with pytest.raises(ValueError, match=message):
            fira_jax.from_torch(tx, params, states)

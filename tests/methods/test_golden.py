"""Weights that the released Fira 1.0.2 and galore-torch 1.0 reached from gradients in closed form.

Recorded once from the packages, so that this needs neither of them. There are fewer steps than the
gap: the signs of the first basis cancel.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fira_jax

SHAPES = ((3, 5), (5, 3), (4, 4))  # (out, in), as PyTorch stores them

# [W[0, 0], W[0, 1], W[1, 0], W[-1, -1], norm of W] after five steps.
WEIGHTS = {
    ("fira", 1.0): (
        (-0.235883, -0.227075, -0.118900, 0.067319, 0.846432),
        (-0.262220, -0.169736, 0.061922, -0.222158, 0.723688),
        (-0.519421, -0.106912, 0.033481, -0.242620, 0.876547),
    ),
    ("fira", 0.25): (
        (-0.180255, -0.119836, 0.042575, 0.090183, 0.575573),
        (-0.175958, -0.072577, 0.020016, -0.191006, 0.501080),
        (-0.336843, -0.179746, 0.059777, -0.159763, 0.642787),
    ),
    ("galore", 1.0): (
        (-0.251082, -0.246815, -0.161800, 0.048816, 0.828770),
        (-0.237876, -0.209585, 0.112792, -0.193042, 0.687511),
        (-0.422561, 0.161019, -0.032432, -0.112876, 0.706214),
    ),
}
# The norm that the limiter remembers after each step.
LIMITER = {
    1.0: (
        (3.383326, 3.417159, 3.451331, 3.485844, 3.520703),
        (7.863273, 7.941905, 8.021324, 7.560756, 7.636364),
        (20.151081, 20.352591, 11.187621, 11.299498, 11.412494),
    ),
    0.25: (
        (8.226727, 8.308993, 8.392083, 8.476004, 7.654079),
        (10.866033, 10.974691, 11.084438, 10.300281, 10.403283),
        (21.237892, 21.450272, 12.897188, 13.026160, 13.156422),
    ),
}


def gradient(shape: tuple[int, int], step: int) -> np.ndarray:
    i, j = np.ogrid[: shape[0], : shape[1]]
    return np.sin(
        1 + 1.3 * i + 0.7 * j + 0.9 * step + 0.37 * i * j + 0.11 * i**2 * j * (step + 1)
    ).astype(np.float32)


@pytest.mark.parametrize(("method", "alpha"), WEIGHTS)
def test_recorded_trajectory(method, alpha):
    tx = getattr(fira_jax, method)(
        0.1, rank=2, update_proj_gap=100, scale=alpha, basis="svd", eps=1e-6
    )
    params = [jnp.zeros(shape[::-1]) for shape in SHAPES]  # kernels are (in, out)
    state = tx.init(params)
    update = jax.jit(tx.update)
    remembered = []
    for step in range(5):
        grads = [jnp.asarray(gradient(shape, step).T) for shape in SHAPES]
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        remembered.append(optax.tree.get(state, "previous"))

    for i, expected in enumerate(WEIGHTS[method, alpha]):
        w = np.asarray(params[i]).T
        got = (w[0, 0], w[0, 1], w[1, 0], w[-1, -1], np.linalg.norm(w))
        np.testing.assert_allclose(got, expected, atol=1e-5, err_msg=str(SHAPES[i]))
        if method == "fira":
            norms = [float(previous[i]) for previous in remembered]
            np.testing.assert_allclose(norms, LIMITER[alpha][i], rtol=1e-5)

"""What every parity test is run on: one tree of differently shaped layers and their gradients."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from optax.contrib import MuonDimensionNumbers

RANK = 5
GAP = 12
STEPS = 44  # four bases: the first, and refreshes at 12, 24 and 36
SPIKES = (8, 24, 40)  # the second one falls on a refresh
LEARNING_RATE = 0.01


class Layer(NamedTuple):
    """One parameter: its shape as stored here and the axes that form its matrix."""

    shape: tuple[int, ...]
    reduction: tuple[int, ...] = ()
    output: tuple[int, ...] = ()

    @property
    def spec(self) -> MuonDimensionNumbers | None:
        return MuonDimensionNumbers(self.reduction, self.output) if self.reduction else None

    def to_torch(self, x: np.ndarray) -> list[np.ndarray]:
        """``shape`` -> the (out, in) weights of the equivalent PyTorch layers."""
        if not self.reduction:
            return [x]
        batch = tuple(set(range(x.ndim)) - {*self.reduction, *self.output})
        inputs = int(np.prod([x.shape[i] for i in self.reduction]))
        outputs = int(np.prod([x.shape[i] for i in self.output]))
        matrices = x.transpose(batch + self.reduction + self.output).reshape(-1, inputs, outputs)
        return [matrix.T for matrix in matrices]


# Many layers share the canonical shape 12 x 20 because every further one costs compile time.
LAYERS = {
    "wide": Layer((12, 20), (0,), (1,)),
    "tall": Layer((20, 12), (0,), (1,)),
    "very long": Layer((6, 64), (0,), (1,)),
    "square": Layer((16, 16), (0,), (1,)),
    "1 x n": Layer((1, 20), (0,), (1,)),
    "n x 1": Layer((20, 1), (0,), (1,)),
    "rank = short side": Layer((5, 12), (0,), (1,)),
    "rank > short side": Layer((20, 4), (0,), (1,)),
    "square, full rank": Layer((4, 4), (0,), (1,)),
    "stacked": Layer((3, 12, 20), (1,), (2,)),
    "experts in the middle": Layer((20, 3, 12), (0,), (2,)),
    "attention in": Layer((12, 4, 5), (0,), (1, 2)),
    "attention out": Layer((4, 5, 12), (0, 1), (2,)),
    "not projected": Layer((20,)),
}
FULL_RANK = [
    name
    for name, layer in LAYERS.items()
    if layer.reduction and min(layer.to_torch(np.zeros(layer.shape))[0].shape) <= RANK
]


def weights() -> dict[str, np.ndarray]:
    """Where every trajectory starts."""
    rng = np.random.default_rng(1)
    return {name: 0.1 * rng.standard_normal(layer.shape) for name, layer in LAYERS.items()}


def gradients() -> dict[str, np.ndarray]:
    """Drifting gradients with a decaying spectrum, noise and three sudden spikes, [steps, ...]."""
    rng = np.random.default_rng(2)
    return {name: _drifting(rng, layer.shape) for name, layer in LAYERS.items()}


def _drifting(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    t = np.arange(STEPS).reshape(-1, *(1,) * len(shape))
    # Uneven rows separate the singular values, without which no two factorizations agree.
    decay = 0.85 ** np.arange(shape[-1])
    mean, slow, fast = (rng.standard_normal(shape) * decay for _ in range(3))
    noise = 0.1 * rng.standard_normal((STEPS, *shape))
    drift = 0.1 * (mean + np.sin(0.15 * t) * slow + 0.5 * np.cos(0.9 * t) * fast + noise)
    spike = np.isin(t, SPIKES) * rng.standard_normal((STEPS, *shape))
    return drift + 2 * spike


def network_weights() -> dict[str, np.ndarray]:
    """A small network's kernels, (in, out): wide, square and tall."""
    rng = np.random.default_rng(3)
    shapes = {"wide": (10, 24), "square": (24, 24), "tall": (24, 10)}
    return {
        name: (rng.standard_normal(shape) / shape[0] ** 0.5).astype(np.float32)
        for name, shape in shapes.items()
    }


def network_gradient(params: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The gradient of its mean squared error on a fixed batch."""
    inputs = np.random.default_rng(4).standard_normal((64, 10)).astype(np.float32)
    target = np.sin(3 * inputs) + inputs[:, ::-1]

    def loss(params: dict[str, jax.Array]) -> jax.Array:
        hidden = jnp.tanh(inputs @ params["wide"])
        output = jnp.tanh(hidden @ params["square"]) @ params["tall"]
        return jnp.mean(jnp.square(output - target))

    return jax.grad(loss)(params)

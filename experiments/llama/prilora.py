"""PRILoRA: ranks that grow with depth, and factors pruned by importance while they are trained."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.llama.adapters import Frozen, LoRA


def rising_ranks(num_layers: int, first: int, last: int) -> list[int]:
    """Ranks of all layers, growing evenly from the first to the last.

    Example:
        >>> rising_ranks(5, 4, 12)
        [4, 6, 8, 10, 12]

    Raises:
        ValueError: If not 1 <= first <= last.
    """
    if not 1 <= first <= last:
        raise ValueError(f"ranks must grow from at least 1, got {first} to {last}")
    return [round(r) for r in np.linspace(first, last, num_layers)]


@jax.custom_vjp
def measured(x: jax.Array, energy: jax.Array) -> jax.Array:  # noqa: ARG001
    """``x [..., in]`` as it is, with the mean of its squares [in] as the gradient of ``energy``.

    So whoever asks for that gradient is told how large the inputs of a layer were, from inside a
    scan over layers too.
    """
    return x


def _forward(x: jax.Array, energy: jax.Array) -> tuple[jax.Array, jax.Array]:  # noqa: ARG001
    return x, x


def _backward(x: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    squares = jnp.square(x.reshape(-1, x.shape[-1]).astype(jnp.float32))
    return cotangent, jnp.mean(squares, axis=0)


measured.defvjp(_forward, _backward)


class InputEnergy(Frozen):
    """The average of a layer's squared inputs."""


class PRILoRA(LoRA):
    """A LoRA that knows how large its inputs are, and drops what matters least of ``A``.

    Layers of several ranks are stacked at the largest; the directions above a layer's own rank are
    masked, and neither used nor trained.

    Args:
        kernel: As for :class:`LoRA`, like all others.
        rank: The largest rank of any layer.
        own_rank: This layer's, see :func:`rising_ranks`; by default ``rank``. May be traced.
        decay: Of the average of squared inputs.
        **further: ``alpha``, ``rank_stabilised``, ``rngs``.

    References:
        Benedek and Wolf, PRILoRA: Pruned and Rank-Increasing Low-Rank Adaptation,
        https://arxiv.org/abs/2401.11316. Readings, since the text was not at hand: importance is
        ``|A|`` times the root of the averaged squared input, as in Wanda; what is pruned becomes
        zero, and may grow again.
    """

    def __init__(
        self,
        kernel: jax.Array,
        rank: int,
        *,
        own_rank: jax.typing.ArrayLike | None = None,
        decay: float = 0.9,
        **further,
    ):
        super().__init__(kernel, rank, **further)
        own_rank = rank if own_rank is None else own_rank
        self.mask = Frozen((jnp.arange(rank) < own_rank).astype(kernel.dtype))
        self.input_energy = InputEnergy(jnp.zeros(kernel.shape[0], jnp.float32))
        self.decay = decay

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., in] to [..., out]."""
        x = measured(x, self.input_energy[...])
        inside = ((x @ self.lora_a[...]) * self.mask[...]) @ self.lora_b[...]
        return x @ self.kernel[...] + self.scaling * inside

    def merged(self) -> jax.Array:
        """The one kernel that does the same."""
        product = (self.lora_a[...] * self.mask[...]) @ self.lora_b[...]
        return self.kernel[...] + self.scaling * product

    def observe(self, energy: jax.Array) -> None:
        """Takes the mean squares of some inputs [in] into the average."""
        self.input_energy[...] = self.decay * self.input_energy[...] + (1 - self.decay) * energy

    def importance(self) -> jax.Array:
        """Of every entry of ``A``, [in, r]."""
        size = jnp.sqrt(self.input_energy[...])[:, None]
        return jnp.abs(self.lora_a[...].astype(jnp.float32)) * size * self.mask[...]

    def prune(self, fraction: float) -> None:
        """Makes this share of each column of ``A`` zero: what matters least of it.

        The paper does so every 40 steps, with a share of one half.
        """
        importance = self.importance()
        count = round(fraction * importance.shape[0])
        order = jnp.argsort(jnp.argsort(importance, axis=0), axis=0)
        self.lora_a[...] = jnp.where(order < count, 0, self.lora_a[...])

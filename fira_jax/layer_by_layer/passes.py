"""Forward, keeping each layer's input only; backward, one layer's gradient at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fira_jax.layer_by_layer.independence import used_entries
from fira_jax.layer_by_layer.micro_batches import in_pieces, summed_vjp
from fira_jax.layer_by_layer.weights import decoded
from fira_jax.norms import squared_norm
from fira_jax.trees import Params

Batch = Any
"""Whatever the model reads: a pytree of arrays."""


@dataclasses.dataclass(frozen=True)
class Model:
    """A model of equal layers, as :func:`fira_jax.layerwise` is given it."""

    embed: Callable[[Params, Batch], Any]
    block: Callable[[Params, Any], Any]
    head_loss: Callable[[Params, Any, Batch], jax.Array]
    layers: str
    micro_batches: int

    def forward(self, params: Params, batch: Batch) -> Run:
        """Runs the model, and the backward pass as far as the output of the last layer."""
        outer = decoded({name: params[name] for name in params if name != self.layers})
        # The gradient of what lies below the layers is complete only after them.
        below = {name: outer[name] for name in used_entries(self.embed, outer, batch)}

        def through(x: Any, stored: Any) -> tuple[Any, Any]:
            layer = decoded(stored)
            return in_pieces(lambda x: self.block(layer, x), self.micro_batches, x), x

        x, embed_vjp = jax.vjp(lambda below: self.embed({**outer, **below}, batch), below)
        x, inputs = jax.lax.scan(through, x, params[self.layers])
        loss, (grads, dx) = jax.value_and_grad(self.head_loss, argnums=(0, 1))(outer, x, batch)
        above = {name: grads.pop(name) for name in outer if name not in below}
        return Run(self, params[self.layers], inputs, embed_vjp, loss, above, grads, dx)


@dataclasses.dataclass(frozen=True)
class Run:
    """A forward pass, and what its backward pass starts from.

    Attributes:
      model: what ran.
      stored: its layers, as they are stored.
      inputs: the input of each layer, stacked.
      embed_vjp: from the gradient of the first layer's input to that of what lies below.
      loss: scalar.
      above: gradients of the entries that only the loss reads, complete.
      shared: gradients so far of the entries that lie below the layers.
      dx: gradient of the last layer's output.
    """

    model: Model
    stored: Any
    inputs: Any
    embed_vjp: Callable[[Any], Any]
    loss: jax.Array
    above: dict[str, Any]
    shared: dict[str, Any]
    dx: Any

    def gradient_norm(self) -> jax.Array:
        """The norm of the whole gradient, by a backward pass of its own that updates nothing."""

        def measure(carry: Any, scanned: Any) -> tuple[Any, None]:
            dx, energy = carry
            stored, x = scanned
            layer_grads, dx = self._layer_vjp(stored, x, dx)
            return (dx, energy + squared_norm(layer_grads)), None

        start = self.dx, self._energy_above()
        (dx, energy), _ = jax.lax.scan(measure, start, (self.stored, self.inputs), reverse=True)
        return jnp.sqrt(energy + squared_norm(self.embed_gradient(dx)))

    def shrunk(self, factor: jax.Array) -> Run:
        """The run of a loss multiplied by ``factor``: the gradient is linear in what it sends."""
        above, shared, dx = jax.tree.map(
            lambda g: g * factor.astype(g.dtype), (self.above, self.shared, self.dx)
        )
        return dataclasses.replace(self, above=above, shared=shared, dx=dx)

    def update_layers(
        self, stacks: tuple[Any, Any], update: Callable[[Any, Any, Any, Any], tuple[Any, Any]]
    ) -> tuple[Any, jax.Array, tuple[Any, Any]]:
        """Updates the layers from the last to the first, each as soon as its gradient exists.

        Args:
          stacks: stored weights and optimizer states of the layers.
          update: ``(gradient, state, stored, number) -> (stored, state)`` of one layer.

        Returns:
          The gradient of the first layer's input, the sum of squares of all gradients so far, and
          the new stacks.
        """

        def backward(carry: Any, numbered: Any) -> tuple[Any, None]:
            dx, energy, stacks = carry
            i, x = numbered
            layer, state = (
                jax.tree.map(lambda s: jax.lax.dynamic_index_in_dim(s, i, 0, False), stack)
                for stack in stacks
            )
            # What reads the layer comes before what overwrites it, so that nothing is copied.
            layer_grads, dx = jax.lax.optimization_barrier(self._layer_vjp(layer, x, dx))
            new = update(layer_grads, state, layer, i)
            stacks = jax.tree.map(
                lambda s, x: jax.lax.dynamic_update_index_in_dim(s, x, i, 0), stacks, new
            )
            return (dx, energy + squared_norm(layer_grads), stacks), None

        numbers = jnp.arange(len(jax.tree.leaves(self.inputs)[0]))
        start = self.dx, self._energy_above(), stacks
        return jax.lax.scan(backward, start, (numbers, self.inputs), reverse=True)[0]

    def embed_gradient(self, dx: Any) -> dict[str, Any]:
        """The complete gradient of what lies below the layers, from that of the first input."""
        return jax.tree.map(jnp.add, self.embed_vjp(dx)[0], self.shared)

    def _layer_vjp(self, stored: Any, x: Any, dx: Any) -> tuple[Any, Any]:
        return summed_vjp(self.model.block, self.model.micro_batches, decoded(stored), x, dx)

    def _energy_above(self) -> jax.Array:
        # As wide as any gradient that is added to it in the loop.
        return squared_norm(self.above) + jnp.zeros([])

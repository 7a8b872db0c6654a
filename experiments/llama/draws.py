"""Layers that draw at random while they are trained."""

import jax
from flax import nnx

from experiments.llama.adapters import Frozen


class Drawing(nnx.Module):
    """What a layer draws from: a key that is part of the model, so that a run resumes exactly.

    It draws only while ``training`` is true, see ``nnx.Module.set_attributes``; :meth:`redraw`
    belongs between two updates.
    """

    training = False

    def begin_drawing(self, rngs: nnx.Rngs) -> None:
        """Takes its first key from ``rngs``."""
        self.draw = Frozen(jax.random.key_data(rngs.params()))

    @property
    def key(self) -> jax.Array:
        """The present key."""
        return jax.random.wrap_key_data(self.draw[...])

    def redraw(self) -> None:
        """Goes on to the next key."""
        self.draw[...] = jax.random.key_data(jax.random.fold_in(self.key, 1))

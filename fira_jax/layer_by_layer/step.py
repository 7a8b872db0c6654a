"""A training step in which the optimizer consumes each layer's gradient as soon as it exists."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fira_jax.layer_by_layer.independence import require_independent_parameters
from fira_jax.layer_by_layer.passes import Batch, Model
from fira_jax.layer_by_layer.weights import FloatingWeights, QuantizedWeights, decoded
from fira_jax.norms import squared_norm
from fira_jax.precision.quantized_weights import dequantize_weights, has_quantized_weights
from fira_jax.trees import Params


class Layerwise(NamedTuple):
    """What :func:`layerwise` returns: two pure functions.

    Attributes:
      init: ``params -> state``, a dictionary with an entry for each entry of ``params``; that of
        the layers holds one optimizer state a layer, stacked as they are.
      step: ``(params, state, batch) -> (params, state, metrics)``, the metrics being the scalars
        ``loss`` and ``grad_norm`` (of the whole gradient, before clipping). Jit it with
        ``donate_argnums=(0, 1)``: otherwise a second copy of the weights exists.
    """

    init: Callable[[Params], dict[str, Any]]
    step: Callable[[Params, dict[str, Any], Batch], tuple[Params, dict[str, Any], dict[str, Any]]]


def layerwise(
    tx: optax.GradientTransformation,
    *,
    embed: Callable[[Params, Batch], Any],
    block: Callable[[Params, Any], Any],
    head_loss: Callable[[Params, Any, Batch], jax.Array],
    layers: str = "layers",
    micro_batches: int = 1,
    clip_norm: float | None = None,
    seed: jax.typing.ArrayLike = 0,
) -> Layerwise:
    r"""Trains a model of equal layers without its gradient ever existing as a whole.

    The forward pass keeps each layer's input and nothing else. The backward pass is a loop over
    the layers from the last to the first: it recomputes one layer, takes that layer's gradient,
    has ``tx`` turn it into an update (refreshing the layer's bases if that is due) and writes
    weights and optimizer state back to where they stood. The peak of memory is about

    .. math::

        W + S + N T D + W / N + \text{activations of one layer}

    for weights :math:`W`, optimizer state :math:`S` and the inputs of :math:`N` layers, :math:`T`
    tokens of width :math:`D` each. The result is that of the ordinary step on the same batch, up
    to rounding.

    ``tx`` sees one entry of ``params`` at a time, and of the layers one layer without the leading
    axis; dimension numbers, masks and paths are understood in that tree (``layers/attn/q`` with
    shape ``[in, out]``). Its counters exist once for every layer and always agree. Random bases
    of equally shaped weights are equal in all layers, as in the ordinary step; a staggered refresh
    is spread over the matrices of one layer, all layers alike.

    ``params`` may hold weights in 8 bits (:func:`fira_jax.precision.quantize_weights`): they are
    decoded one layer at a time, and rounded at random after its update. The state then counts the
    steps too.

    Args:
      tx: any transformation in which no parameter's update depends on another parameter. Every
        method of this library is one, ``optax.clip_by_global_norm`` is not: use ``clip_norm``. It
        is given the loss as ``value``.
      embed: ``(outer, batch) -> x``, from all entries of ``params`` but the layers to the input of
        the first layer, a floating-point array or a pytree of them.
      block: ``(layer, x) -> x``, one layer.
      head_loss: ``(outer, x, batch) -> loss``, the mean loss of the batch from the output of the
        last layer. :func:`fira_jax.chunked_cross_entropy` keeps it from holding all logits. A
        weight that ``embed`` and ``head_loss`` share gets the sum of both gradients.
      layers: the entry of ``params`` that holds the layers, stacked along the first axis.
      micro_batches: pieces, along the first axis of ``x``, in which ``block`` sees the batch, to
        bound the activations of one layer. One layer's gradient is summed over them in float32:
        exact gradient accumulation for the price of one layer's gradient instead of the model's,
        as long as all layers' inputs fit.
      clip_norm: largest norm of the whole gradient. Costs a second backward pass, since the norm
        must be known before the first layer is updated.
      seed: seeds the rounding of weights in 8 bits.

    Returns:
      Functions ``init`` and ``step``.

    Raises:
      ValueError: ``micro_batches`` or ``clip_norm`` is out of range; at ``init``, ``params`` are
        not stacked as described, or ``tx`` lets one parameter's update depend on another.

    Example:
      >>> import fira_jax, jax, jax.numpy as jnp
      >>> params = {
      ...     "in": jnp.ones((8, 4)),
      ...     "layers": {"w": 0.1 * jnp.ones((3, 4, 4))},
      ...     "out": jnp.ones(4),
      ... }
      >>> init, step = fira_jax.layerwise(
      ...     fira_jax.fira(0.01, rank=2),
      ...     embed=lambda outer, batch: batch["x"] @ outer["in"],
      ...     block=lambda layer, x: x + jnp.tanh(x @ layer["w"]),
      ...     head_loss=lambda outer, x, batch: jnp.mean((x @ outer["out"] - batch["y"]) ** 2),
      ... )
      >>> state, step = init(params), jax.jit(step, donate_argnums=(0, 1))
      >>> batch = {"x": jnp.eye(8), "y": jnp.arange(8.0)}
      >>> params, state, before = step(params, state, batch)
      >>> params, state, after = step(params, state, batch)
      >>> bool(after["loss"] < before["loss"])
      True

    References:
      Lv et al., `Full Parameter Fine-tuning for Large Language Models with Limited Resources
      <https://arxiv.org/abs/2306.09782>`_ (LOMO), 2023, fuses SGD into the backward pass and
      clips in two passes; the released GaLore fuses by hooks, without accumulation or clipping.
    """
    if micro_batches < 1:
        raise ValueError(f"micro_batches must be at least 1, got {micro_batches}")
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm must be positive or None, got {clip_norm}")
    model = Model(embed, block, head_loss, layers, micro_batches)
    plain = FloatingWeights(optax.with_extra_args_support(tx))
    in_8_bits = QuantizedWeights.counting_steps_of(plain.tx, seed)

    def weights_of(params: Params) -> FloatingWeights | QuantizedWeights:
        return in_8_bits if has_quantized_weights(params) else plain

    def init(params: Params) -> dict[str, Any]:
        one, tx = _with_one_layer(params, layers), weights_of(params).tx
        jax.eval_shape(tx.init, one)  # raises, or warns, about the model as a whole
        require_independent_parameters(tx, one)

        def init_entry(name: str) -> Any:
            init = lambda value: tx.init(_only(one, name, dequantize_weights(value)))  # noqa: E731
            return (jax.vmap(init) if name == layers else init)(params[name])

        with warnings.catch_warnings():
            # That one entry has no matrix says nothing about the model.
            warnings.filterwarnings("ignore", message="none of the .* parameters is a matrix")
            return {name: init_entry(name) for name in params}

    def step(
        params: Params, state: dict[str, Any], batch: Batch
    ) -> tuple[Params, dict[str, Any], dict[str, Any]]:
        one, weights = _with_one_layer(params, layers), weights_of(params)
        run = model.forward(params, batch)
        clipped_norm = None
        if clip_norm is not None:
            clipped_norm = run.gradient_norm()
            run = run.shrunk(jnp.where(clipped_norm > clip_norm, clip_norm / clipped_norm, 1))

        def update(name: str, grads: Any, state: Any, stored: Any, number: Any = 0) -> Any:
            value = decoded(stored)  # again: kept since the gradient it would take its room
            updates, new_state = weights.tx.update(
                _only(one, name, grads), state, _only(one, name, value), value=run.loss
            )
            count = len(jax.tree.leaves(run.inputs)[0])
            before, after = {name: stored}, {name: value}
            new = weights.write(before, after, {name: updates[name]}, state, number, count)
            return new[name], new_state

        new = {name: update(name, run.above[name], state[name], params[name]) for name in run.above}
        stacks = params[layers], state[layers]
        dx, energy, new[layers] = run.update_layers(stacks, functools.partial(update, layers))
        grads = run.embed_gradient(dx)
        new |= {name: update(name, grads[name], state[name], params[name]) for name in grads}
        norm = jnp.sqrt(energy + squared_norm(grads)) if clipped_norm is None else clipped_norm
        params, state = ({name: new[name][i] for name in params} for i in range(2))
        return params, state, {"loss": run.loss, "grad_norm": norm}

    return Layerwise(init, step)


def _with_one_layer(params: Params, layers: str) -> dict[str, Any]:
    """The shapes of ``params``, decoded, with one layer in place of the stack."""
    if not isinstance(params, Mapping) or layers not in params:
        found = sorted(params) if isinstance(params, Mapping) else type(params).__name__
        raise ValueError(f"params must be a mapping with an entry {layers!r}, got {found}")
    params = jax.eval_shape(dequantize_weights, params)
    sizes = {x.shape[0] if x.shape else None for x in jax.tree.leaves(params[layers])}
    if len(sizes) != 1 or None in sizes:
        raise ValueError(
            f"params[{layers!r}] must hold arrays with one first axis, the layers, got shapes "
            f"{[x.shape for x in jax.tree.leaves(params[layers])]}"
        )
    shape = lambda x, of: jax.ShapeDtypeStruct(of, x.dtype)  # noqa: E731
    return {
        name: jax.tree.map(
            lambda x, name=name: shape(x, x.shape[1:] if name == layers else x.shape), value
        )
        for name, value in params.items()
    }


def _only(one: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    """A tree like ``one`` with ``value`` as one entry and every other parameter masked."""
    masked = {k: jax.tree.map(lambda _: optax.MaskedNode(), v) for k, v in one.items()}
    return {**masked, name: value}

"""The pure functions of training: the first state, one update, one evaluation."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import fira_jax
from experiments.llama.model import Llama, LlamaConfig, loss
from experiments.mesh import param_shardings, split_rows
from experiments.training.watch import watched

Loss = Callable[[Any, Any], jax.Array]
"""The mean loss of a model over a batch."""


class TrainState(NamedTuple):
    """Everything an update reads and writes."""

    step: jax.Array  # int32, updates done
    params: Any  # nested dict of arrays
    opt_state: optax.OptState
    frozen: Any = ()  # the same for arrays of the model that are not trained, if there are any


def make_init(
    model_config: LlamaConfig,
    optimizer: optax.GradientTransformation,
    seed: int,
    prepare: Callable[[Llama], None] = lambda _: None,
) -> tuple[nnx.GraphDef, Callable[[], TrainState]]:
    """The model's structure, and a pure function that builds the first state.

    Nothing is allocated here: trace the function for shapes, jit it for arrays. What ``prepare``
    changes in the model as it is drawn belongs to both.
    """

    def model() -> Llama:
        model = Llama(model_config, rngs=nnx.Rngs(seed))
        prepare(model)
        return model

    def init_state() -> TrainState:
        params, frozen = split(model())
        return TrainState(jnp.int32(0), params, optimizer.init(params), frozen)

    return nnx.graphdef(nnx.eval_shape(model)), init_state


def split(model: nnx.Module) -> tuple[Any, Any]:
    """The trained arrays of a model, and the others: ``()`` if there are none."""
    params, frozen = (
        nnx.to_pure_dict(nnx.state(model, which)) for which in (nnx.Param, nnx.Not(nnx.Param))
    )
    return params, frozen or ()


def merge(graphdef: nnx.GraphDef, params: Any, frozen: Any) -> Any:
    """Undoes :func:`split`."""
    return nnx.merge(graphdef, params, *([frozen] if frozen else []))


def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    accumulate: int,
    state_shardings: Any = None,
    adaptive: int | None = None,
    loss: Loss = loss,
) -> Any:
    """One update on a batch, ``tokens [batch, seq_len + 1]`` unless ``loss`` takes another.

    The update is jitted, its state donated.

    On a mesh, ``state_shardings`` says how the new state is spread.

    With ``accumulate`` > 1 the batch is cut into that many micro-batches whose gradients are
    summed in a scan, so that only one micro-batch's activations exist at a time.

    With ``adaptive`` the batch may hold any multiple of so many sequences, cut into as many times
    ``accumulate`` micro-batches, and the optimizer is told how far their gradients spread.
    """

    def loss_and_grads(params: Any, frozen: Any, batch: Any) -> tuple[jax.Array, Any]:
        return jax.value_and_grad(lambda p: loss(merge(graphdef, p, frozen), batch))(params)

    def mean_over_micro_batches(
        params: Any, frozen: Any, batch: Any
    ) -> tuple[jax.Array, Any, jax.Array | None]:
        count = accumulate * (_rows(batch) // adaptive if adaptive else 1)
        micro_batches = jax.tree.map(
            lambda x: split_rows(x.reshape(count, -1, *x.shape[1:]), axis=1), batch
        )

        def add(total: Any, micro_batch: Any) -> tuple[Any, jax.Array | None]:
            # Summed in float32: in bfloat16 the eighth micro-batch would lose its last three bits.
            parts = loss_and_grads(params, frozen, micro_batch)
            total = jax.tree.map(lambda t, x: t + x.astype(jnp.float32), total, parts)
            return total, fira_jax.transforms.squared_norm(parts[1]) if adaptive else None

        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (jnp.float32(0), params))
        (total_loss, total), squared_norms = jax.lax.scan(add, zeros, micro_batches)
        grads = jax.tree.map(lambda t, p: (t / count).astype(p.dtype), total, params)
        return total_loss / count, grads, squared_norms

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        told, values = {}, {}
        if accumulate == 1:
            train_loss, grads = loss_and_grads(state.params, state.frozen, batch)
        else:
            train_loss, grads, squared_norms = mean_over_micro_batches(
                state.params, state.frozen, batch
            )
            if squared_norms is not None:
                each = _rows(batch) // len(squared_norms)
                told = {
                    "gradient_variance": fira_jax.transforms.gradient_variance(
                        squared_norms, grads, each
                    )
                }
                values = {"batch_size": jnp.int32(_rows(batch))}
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, **told)
        values |= {
            "train_loss": train_loss,
            "lr": jnp.asarray(schedule(state.step)),
            "grad_norm": optax.global_norm(jax.tree.map(lambda g: g.astype(jnp.float32), grads)),
        }
        values |= watched(opt_state)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state, state.frozen), values

    if state_shardings is None:
        return jax.jit(train_step, donate_argnums=0)
    everywhere = NamedSharding(state_shardings.step.mesh, PartitionSpec())
    return jax.jit(train_step, donate_argnums=0, out_shardings=(state_shardings, everywhere))


def _rows(batch: Any) -> int:
    return len(jax.tree.leaves(batch)[0])


def lower_update(train_step: Any, state: TrainState, tokens: Any) -> Any:
    """Lowers an update; on a TPU with its state laid out in memory as its compiler likes best.

    By default a stack of layers lies there as its tiles waste least: for a side like the 5,461 of
    LLaMA-1B's MLP with the layers innermost, so that a loop over them copies it, 4.5 GiB at every
    step with AdamW. What is compiled takes a state only where and as its ``input_formats`` say.

    Args:
        train_step: Of :func:`make_train_step` or ``experiments.layerwise``.
        state: Abstract, with shardings on a mesh or for a chip that is not there.
        tokens: One batch, or its shape.
    """
    where: Any = state.step.sharding
    platform = next(iter(where.device_set)).platform if where else jax.default_backend()
    if platform != "tpu":  # elsewhere arrays lie as they are indexed, and loops over layers like it
        return train_step.lower(state, tokens)
    formats = jax.tree.map(lambda x: Format(Layout.AUTO, x.sharding), state)
    chosen: Any = {"in_shardings": (formats, None), "out_shardings": (formats, None)}
    return jax.jit(train_step, donate_argnums=0, **chosen).lower(state, tokens)


def make_state_shardings(
    mesh: Mesh, optimizer: optax.GradientTransformation, state: TrainState
) -> TrainState:
    """How a state, given abstractly, is spread over the devices of ``mesh``."""
    params = param_shardings(mesh, state.params)
    return TrainState(
        NamedSharding(mesh, PartitionSpec()),  # type: ignore[arg-type]  # in an array's place
        params,
        fira_jax.state_shardings(optimizer, state.params, params),
        param_shardings(mesh, state.frozen),
    )


def make_evaluate(graphdef: nnx.GraphDef, loss: Loss = loss) -> Callable[..., jax.Array]:
    """A function ``(params, batches, frozen=()) -> mean loss`` over equally large batches."""
    batch_loss = jax.jit(lambda params, frozen, batch: loss(merge(graphdef, params, frozen), batch))

    def evaluate(params: Any, batches: Iterable[Any], frozen: Any = ()) -> jax.Array:
        return jnp.mean(jnp.stack([batch_loss(params, frozen, batch) for batch in batches]))

    return evaluate

"""``python -m experiments.memory``: what a training step takes on each device; see ``HELP``."""

import argparse
import collections
import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
import tyro
from jax.sharding import AbstractMesh

from experiments.llama.configs import load_model_config
from experiments.llama.model import LlamaConfig
from experiments.mesh import AXES, mesh_sizes
from experiments.training.config import PretrainConfig, overlay
from experiments.training.layerwise_step import make_layerwise
from experiments.training.optimizers import build_optimizer
from experiments.training.step import make_init, make_state_shardings, make_train_step
from fira_jax.cost.liveness import Array, Size, nbytes, peak
from fira_jax.cost.memory import device_bytes, split_size

HELP = """How much memory one training step takes on each device, before anything runs.

  python -m experiments.memory --model llama_1b                        # as experiments.pretrain
  python -m experiments.memory --model llama_7b --batch-size 1 --seq-len 2048 --layerwise
  python -m experiments.memory --model llama_7b --batch-size 8 --mesh fsdp=8

Nothing is allocated and no accelerator is needed: the step is traced, which takes some seconds.
Weights and optimizer state are exact. What the step needs besides is estimated by following the
traced program from operation to operation; the guide "How much memory" says how, and how far it is
from what the compilers for TPUs and GPUs say. Options not given are those of the model's yaml.

If it does not fit: --remat, then --accumulate (or a smaller --batch-size), then --layerwise (one
device) or a larger --mesh fsdp=N. A low rank shrinks only the optimizer state.
"""

GIB = 2**30
# What a program may use of the memory: for a TPU as its compiler says when a program needs more.
CHIPS_GIB = {
    "RTX 4080": 15.7,
    "TPU v5e": 15.75,
    "RTX 4090": 23.55,
    "TPU v4": 30.75,
    "TPU v6e": 31.25,
    "H100": 79.1,
    "TPU v5p": 95.74,
}
# How far the estimate may be off, see tests/experiments/test_step_memory.py.
MARGIN = 0.1


@dataclasses.dataclass(frozen=True)
class MemoryConfig:
    """One training step."""

    model: str = "llama_7b"
    """A file in experiments/configs (llama_1m, llama_60m ... llama_7b) or the path of a yaml."""
    optimizer: str = "fira"
    """Name in experiments/training/optimizers.py, such as fira, galore, apollo_mini or adamw."""
    rank: int = 128
    """Dimension of the subspace that each projected matrix's Adam moments live in."""
    batch_size: int = 512
    """Sequences in one update, over all devices and micro-batches."""
    seq_len: int = 256
    """Tokens in a sequence."""
    accumulate: int = 1
    """Micro-batches that the batch is split into, so that fewer activations exist at once; with
    --layerwise they are split within each layer."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of weights, activations and optimizer state."""
    basis: str | None = None
    """How subspaces are found (randomized, svd, ...); default: the optimizer's own choice."""
    mesh: str | None = None
    """How many devices share the work, e.g. data=2,fsdp=4,tensor=2; default: one device."""
    layerwise: bool = False
    """The step of fira_jax.layerwise: each layer's gradient is used up before the next exists."""
    remat: bool = False
    """Keep only each layer's input for the backward pass and recompute the rest."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Bytes on each device; ``print`` shows them as a table.

    Attributes:
        weight_bytes: Of the parameters, exact.
        state_bytes: Of the optimizer's state, exact.
        gathered_bytes: Of weights of other devices that are there while they are used.
        working_bytes: Of everything else at the worst moment: gradients, activations, updates.
        arrays: What that is made of.
        gradient_bytes: Of all gradients, should they exist together: a part of the former.
    """

    weight_bytes: int
    state_bytes: int
    gathered_bytes: int
    working_bytes: int
    arrays: tuple[Array, ...]
    gradient_bytes: int

    @property
    def peak_bytes(self) -> int:
        """The largest sum at any moment of the step."""
        return self.weight_bytes + self.state_bytes + self.gathered_bytes + self.working_bytes

    def __str__(self) -> str:
        """What adds up to the peak, and which chips have room for it."""

        def line(name: str, size: int, note: str = "") -> str:
            return f"{name:24}{size / GIB:9.3f} GiB  {note}".rstrip()

        alike = collections.Counter[tuple[str, int]]()
        for x in self.arrays:
            alike[f"{x.dtype}[{', '.join(map(str, x.shape))}]", x.size] += 1
        largest = sorted(alike.items(), key=lambda item: -item[0][1] * item[1])[:8]
        gib = self.peak_bytes / GIB
        verdicts = collections.defaultdict(list)
        for chip, room in CHIPS_GIB.items():
            close = abs(gib - room) < MARGIN * room
            verdicts["too close to say" if close else "yes" if gib < room else "no"].append(chip)
        return "\n".join(
            (
                line("weights", self.weight_bytes, "exact"),
                line("optimizer state", self.state_bytes, "exact"),
                *([line("weights gathered", self.gathered_bytes)] if self.gathered_bytes else []),
                line(
                    "all gradients",
                    self.gradient_bytes,
                    "exact; in the next if all exist",
                ),
                line("at the worst moment", self.working_bytes, "estimated; the largest arrays:"),
                *(
                    line("", size * count, f"{f'{count} x ' if count > 1 else ''}{name}")
                    for (name, size), count in largest
                ),
                line("peak", self.peak_bytes),
                *(
                    f"fits: {verdict:17} {', '.join(verdicts[verdict])}"
                    for verdict in ("yes", "too close to say", "no")
                    if verdicts[verdict]
                ),
            )
        )


def predict(
    model: LlamaConfig,
    optimizer: optax.GradientTransformation,
    batch_size: int,
    seq_len: int,
    accumulate: int = 1,
    *,
    layerwise: bool = False,
    sizes: dict[str, int] | None = None,
    store: Callable[[Any], Any] = lambda params: params,
) -> Prediction:
    """What a step takes on each device.

    Args:
        model: Architecture and dtypes.
        optimizer: Any transformation; with ``layerwise``, one that ``fira_jax.layerwise`` accepts.
        batch_size: Sequences in one update.
        seq_len: Tokens in a sequence.
        accumulate: Micro-batches.
        layerwise: Whether the optimizer works within the backward pass.
        sizes: Of the axes of a mesh, as ``mesh_sizes`` gives them; None for one device.
        store: With ``layerwise``, in which form the weights are kept.

    Raises:
        ValueError: The batch does not divide into micro-batches and among devices, or the layerwise
            step is asked for on a mesh.
    """
    sizes = sizes or dict.fromkeys(AXES, 1)
    shares = sizes["data"] * sizes["fsdp"]
    if batch_size % (accumulate * shares):
        raise ValueError(
            f"{batch_size} sequences do not divide into {accumulate} micro-batches on "
            f"{shares} shares of a batch (data x fsdp)"
        )
    devices = math.prod(sizes.values())
    if layerwise and devices > 1:
        raise ValueError("the layerwise step is for one device: leave out --mesh or --layerwise")
    rate = optax.constant_schedule(1e-3)
    model = dataclasses.replace(model, max_sequence_length=seq_len + 100)
    if layerwise:
        init_state, step = make_layerwise(model, optimizer, rate, 0, accumulate, store=store)
    else:
        graphdef, init_state = make_init(model, optimizer, seed=0)
        step = make_train_step(graphdef, optimizer, rate, accumulate)
    state = jax.eval_shape(init_state)
    rows, sides = batch_size // shares, {n for x in jax.tree.leaves(state) for n in x.shape}
    while devices > 1 and sides & {seq_len, rows * seq_len}:
        seq_len += 1  # an activation must not have the sides of a weight or state by chance
    tokens = jax.ShapeDtypeStruct((rows, seq_len + 1), jnp.int32)
    program = jax.make_jaxpr(step)(state, tokens)
    size: Size = nbytes
    gathered, of_params, of_state = 0, None, None
    if devices > 1:
        mesh: Any = AbstractMesh(tuple(sizes.values()), AXES)
        shardings = make_state_shardings(mesh, optimizer, state)
        of_params, of_state = shardings.params, shardings.opt_state
        shared = split_size(optimizer, state.params, of_params, of_state)
        size = _split_activations(model, shared, sizes["tensor"])
        gathered = _gathered(model, state.params, sizes)
    needed = peak(program, size)
    weight_bytes = device_bytes(state.params, of_params)
    return Prediction(
        weight_bytes=weight_bytes,
        state_bytes=device_bytes(state.opt_state, of_state),
        gathered_bytes=gathered,
        working_bytes=needed.size,
        arrays=needed.arrays,
        gradient_bytes=weight_bytes,
    )


def _gathered(model: LlamaConfig, params: Any, sizes: dict[str, int]) -> int:
    """Of weights split along ``fsdp``, those of one layer or of the head, while they are used."""
    if sizes["fsdp"] == 1:
        return 0
    entries = {name: device_bytes(value) for name, value in params.items()}
    entries["layers"] //= model.num_layers
    return max(entries.values()) // sizes["tensor"]


def _split_activations(model: LlamaConfig, shared: Size, tensor: int) -> Size:
    """Of activations, what is as wide as the vocabulary or an MLP, or has heads, is split."""
    inner = {model.intermediate_size, model.vocab_size}
    heads = {model.num_heads, model.num_kv_heads}

    def size(shape: tuple[int, ...], dtype: Any) -> int:
        share = shared(shape, dtype)
        if share < nbytes(shape, dtype):
            return share
        attention = len(shape) >= 4 and model.hidden_size not in shape and heads & set(shape)
        return -(-share // tensor) if attention or inner & set(shape) else share

    return size


def parse(argv: Sequence[str] | None = None) -> MemoryConfig:
    """The step that a command line describes; what it leaves out is the model's yaml's."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--model", default=MemoryConfig.model)
    name = early.parse_known_args(argv)[0].model
    _, from_model = load_model_config(name)
    run = overlay(PretrainConfig(model=name), from_model, f"model {name}, train")
    shared = {field.name for field in dataclasses.fields(PretrainConfig)}
    names = [field.name for field in dataclasses.fields(MemoryConfig) if field.name in shared]
    default = MemoryConfig(**{name: getattr(run, name) for name in names})
    return tyro.cli(MemoryConfig, args=argv, default=default, description=HELP)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the prediction for a command line."""
    config = parse(argv)
    numerics: Any = {"dtype": config.dtype, "param_dtype": config.dtype, "remat": config.remat}
    model = dataclasses.replace(load_model_config(config.model)[0], **numerics)
    run = PretrainConfig(
        model=config.model, optimizer=config.optimizer, rank=config.rank, basis=config.basis
    )
    prediction = predict(
        model,
        build_optimizer(run, lambda _: 1e-3),
        config.batch_size,
        config.seq_len,
        config.accumulate,
        layerwise=config.layerwise,
        sizes=mesh_sizes(config.mesh) if config.mesh else None,
    )
    print(
        f"{config.model}, {config.optimizer}, rank {config.rank}, {config.dtype}, "
        f"{config.batch_size} x {config.seq_len} tokens, "
        f"{'layerwise' if config.layerwise else 'ordinary'} step, "
        f"{f'mesh {config.mesh}, each device' if config.mesh else 'one device'}"
    )
    print(prediction)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")

"""Many devices: which axes they form, what is split over them, and how several processes agree.

    data     every device has all weights and a share of each batch
    fsdp     a share of each batch too, and a share of all weights, gathered when they are used
    tensor   a share of every product: heads and inner widths are split

Any axis may have size 1, which is what it has if it is not named.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # what a batch is split over

# The Megatron layout: a product's input is whole or its output is, so that each pair of products
# needs one sum over the devices.
_BY_NAME = {
    "embedding": ("tensor", "fsdp"),
    "head": ("fsdp", "tensor"),
    **dict.fromkeys(("q", "k", "v", "gate", "up"), (None, "fsdp", "tensor")),
    **dict.fromkeys(("o", "down"), (None, "tensor", "fsdp")),
}


def join(address: str) -> None:
    """Makes this process one of several; before anything else uses a device.

    Args:
        address: ``"auto"`` on TPU pods and under Slurm, Open MPI or Kubernetes, which JAX asks;
            elsewhere ``HOST:PORT,COUNT,INDEX``: where process 0 listens, how many processes there
            are, which of them this is.

    Raises:
        ValueError: Neither of the two.
    """
    if address == "auto":
        jax.distributed.initialize()
        return
    try:
        coordinator, count, index = address.split(",")
        numbers = int(count), int(index)
    except ValueError:
        raise ValueError(
            f"distributed must be 'auto' or HOST:PORT,COUNT,INDEX, got {address!r}"
        ) from None
    jax.distributed.initialize(coordinator, *numbers)


def make_mesh(text: str) -> Mesh:
    """The mesh that ``--mesh`` describes, over all devices of all processes.

    Args:
        text: axes and their sizes, such as ``data=2,fsdp=4``.

    Raises:
        ValueError: not of this form, or not as many devices as there are.
    """
    sizes = mesh_sizes(text)
    if math.prod(sizes.values()) != jax.device_count():
        raise ValueError(
            f"mesh {text!r} has {math.prod(sizes.values())} devices, but there are "
            f"{jax.device_count()}"
        )
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_sizes(text: str) -> dict[str, int]:
    """The size of every axis that ``text`` describes, 1 if it is not named.

    Raises:
        ValueError: not of the form ``data=2,fsdp=4``.
    """
    sizes = dict.fromkeys(AXES, 1)
    try:
        given = [part.split("=") for part in text.split(",")]
        named = {name.strip(): int(size) for name, size in given}
    except ValueError:
        named = {}
    if not named or not named.keys() <= sizes.keys() or min(named.values()) < 1:
        raise ValueError(f"mesh must be like data=2,fsdp=4 with axes {AXES}, got {text!r}")
    return sizes | named


def param_shardings(mesh: Mesh, params: Any) -> Any:
    """How the LLaMA's weights are split; a dimension that an axis does not divide stays whole."""

    def one(path: Any, x: Any) -> NamedSharding:
        axes = _BY_NAME.get(path[-1].key, ())
        fitting = (
            name if name and size % mesh.shape[name] == 0 else None
            for name, size in zip(axes, x.shape, strict=False)
        )
        return NamedSharding(mesh, PartitionSpec(*fitting))

    return jax.tree_util.tree_map_with_path(one, params)


def split_rows(x: jax.Array, axis: int = 0) -> jax.Array:
    """Asks the compiler to split ``axis`` as batches are; without such a mesh, nothing.

    Left alone, it might rather split activations as the weights are, along their channels.
    """
    if not set(ROWS) <= set(jax.sharding.get_abstract_mesh().axis_names):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*[None] * axis, ROWS))


def put_batch(
    rows: np.ndarray, mesh: Mesh | None, share: slice = slice(None), count: int | None = None
) -> jax.Array:
    """A batch on its devices; each process keeps what is on its own.

    Args:
        rows: The batch, or this process's share of it.
        mesh: None for one device.
        share: Which rows of the batch ``rows`` are, such as :func:`local_rows`; by default all.
        count: Rows of the whole batch, if ``rows`` are a share.

    Raises:
        ValueError: The rows do not divide among the devices.
    """
    if mesh is None:
        return jax.numpy.asarray(rows)
    count = len(rows) if count is None else count
    shares = math.prod(mesh.shape[name] for name in ROWS)
    if count % shares:
        raise ValueError(
            f"{count} sequences (batch_size / accumulate) do not divide among the {shares} "
            "devices of the mesh's data and fsdp axes"
        )
    sharding = NamedSharding(mesh, PartitionSpec(ROWS))
    first = share.start or 0

    def piece(index: Any) -> np.ndarray:
        start, stop, _ = index[0].indices(count)
        return rows[(slice(start - first, stop - first), *index[1:])]

    return jax.make_array_from_callback((count, *rows.shape[1:]), sharding, piece)


def local_rows(mesh: Mesh | None, count: int) -> slice:
    """Of a batch of ``count`` rows those that this process's devices hold; it reads no others."""
    if mesh is None or count % math.prod(mesh.shape[name] for name in ROWS):
        return slice(0, count)  # the latter is an error when the batch is put on its devices
    sharding = NamedSharding(mesh, PartitionSpec(ROWS))
    held = sharding.addressable_devices_indices_map((count,)).values()
    bounds = [index[0].indices(count)[:2] for index in held if index is not None]
    return slice(min(start for start, _ in bounds), max(stop for _, stop in bounds))


def is_first_process() -> bool:
    """Whether this is the process that writes what all would write alike."""
    return jax.process_index() == 0


@contextlib.contextmanager
def first_process_first() -> Iterator[None]:
    """Runs the block in process 0, then in the others: they find what it left on disk."""
    if not is_first_process():
        multihost_utils.sync_global_devices("first")
    yield
    if is_first_process():
        multihost_utils.sync_global_devices("first")

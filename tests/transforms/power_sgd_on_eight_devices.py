"""Prints what eight devices send to average a gradient, whole and compressed: see the test."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from fira_jax.transforms import power_sgd_mean

SIZES = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4}
GRADS = {
    "w": jnp.asarray(np.random.default_rng(0).standard_normal((8, 2, 64, 96)), jnp.float32),
    "b": jnp.ones((8, 32)),
}


def all_reduced_bytes(text: str) -> int:
    """Of the results of all all-reduces in a compiled program."""
    total = 0
    for line in text.splitlines():
        match = re.search(r"= (.*?) all-reduce(-start)?\(", line)
        if match:
            for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", match.group(1)):
                total += SIZES[dtype] * int(np.prod([int(n) for n in shape.split(",") if n]))
    return total


def averaged(tx):
    """The update on local gradients, for all devices at once."""

    def local(grads):
        own = jax.tree.map(lambda x: x[0], grads)
        mean, _ = tx.update(own, tx.init(own))
        return jax.tree.map(lambda x: x[None], mean)

    mesh = jax.make_mesh((8,), ("hosts",), axis_types=(AxisType.Auto,))
    return jax.jit(
        jax.shard_map(local, mesh=mesh, in_specs=P("hosts"), out_specs=P("hosts"), check_vma=False)
    )


def main() -> None:
    """Compiles both and counts."""
    compressed = averaged(power_sgd_mean("hosts", rank=4))
    whole = averaged(power_sgd_mean("hosts", rank={"b": 1}))
    mean = np.asarray(compressed(GRADS)["w"])
    print(
        json.dumps(
            {
                "rank 4": all_reduced_bytes(compressed.lower(GRADS).compile().as_text()),
                "whole": all_reduced_bytes(whole.lower(GRADS).compile().as_text()),
                "disagreement": float(np.abs(mean - mean[:1]).max()),
            }
        )
    )


if __name__ == "__main__":
    main()

"""The share of a training step that an optimizer takes on chips that are not here: computed.

Nothing is timed. A step without a refresh: the products of the traced update and the bytes that
XLA's own analysis counts in the program compiled for a CPU, whichever takes longer at the chip's
peak rates. A refresh: the FLOPs of its products and factorizations (those by LAPACK's usual
counts), or the bytes that go in and out of each. Forward and backward: 6 FLOPs a weight and token.
All in float32, whose ordinary products a chip computes at its bfloat16 rate and a refresh's at that
of float32. Matrices of one shape cost the same, so each shape is traced and compiled once.
"""

import collections
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import fira_jax
from benchmarks.operations import product_flops
from benchmarks.update_step import set_count
from experiments.llama.configs import load_model_config
from fira_jax.jax_internals import inner_programs

TOKENS = 16_384
GAPS = {"optax.contrib.galore": 200, "galore": 200, "fira": 200, "fira_tracked": 10, "apollo": 200}
MODELS = {"llama_1b": 512, "llama_7b": 1024}
# Peak FLOP/s in bfloat16 and float32 (on a TPU by six passes), bytes/s.
CHIPS = {"v5e": (197e12, 197e12 / 6, 819e9), "rtx4090": (165e12, 82.6e12, 1008e9)}


def in_layers(path: Any) -> bool:
    """Whether a weight is of attention or MLP."""
    return any(getattr(key, "key", None) in ("attn", "mlp") for key in path)


def numbers(kind: Callable[[], Any]) -> Callable[[Any], Any]:
    """What Optax wants to know of each weight: its axes, or nothing for those left to Adam."""

    def of(params: Any) -> Any:
        return jax.tree.map_with_path(lambda path, _: kind() if in_layers(path) else None, params)

    return of


@dataclasses.dataclass(frozen=True)
class Moved(fira_jax.basis.PowerIteration):
    """Without the first refresh, which comes once in a run and costs more than all others."""

    def find(self, grad: jax.Array, stored: jax.Array, rank: int, key: jax.Array) -> jax.Array:
        """Moves on, whatever is stored."""
        del rank, key
        return self.move(grad, stored)


def optimizers(rank: int, tracked: Any = None) -> dict[str, optax.GradientTransformation]:
    """Those compared: matrices of attention and MLP by the method, all others by Adam."""
    low_rank: Any = {
        "rank": rank,
        "weight_dimension_numbers": fira_jax.match_paths(("attn", "mlp")),
    }
    galore, muon = optax.contrib.GaLoreDimensionNumbers, optax.contrib.MuonDimensionNumbers
    return {
        "adamw": optax.adamw(1e-3),
        "optax.contrib.galore": optax.contrib.galore(
            1e-3, rank, weight_dimension_numbers=numbers(galore)
        ),
        "optax.contrib.muon": optax.contrib.muon(1e-3, muon_weight_dimension_numbers=numbers(muon)),
        "galore": fira_jax.galore(1e-3, **low_rank),
        "fira": fira_jax.fira(1e-3, **low_rank),
        "fira_tracked": fira_jax.fira_tracked(
            1e-3, **low_rank, basis=tracked or fira_jax.basis.PowerIteration()
        ),
        "apollo": fira_jax.apollo(1e-3, **low_rank),
    }


def separate(tree: Any, layers: int) -> Any:
    """The same weights with each layer's as arrays of their own."""
    each = {f"layer{i}": jax.tree.map(lambda x, i=i: x[i], tree["layers"]) for i in range(layers)}
    return {name: x for name, x in tree.items() if name != "layers"} | each


def share(update: float, passes: float) -> float:
    """In percent of a step."""
    return 100 * update / (update + passes)


class Cost:
    """FLOPs and bytes of products and factorizations of a traced program."""

    def __init__(self, *, refresh: bool) -> None:
        """With or without the refresh."""
        self.refresh, self.flops, self.bytes = refresh, 0.0, 0.0

    def add(self, program: Any, times: int = 1) -> "Cost":
        """Walks the program; of a choice it takes the branch that costs most, or least."""
        for equation in program.eqns:
            name = equation.primitive.name
            if name == "cond":
                branches = [
                    Cost(refresh=self.refresh).add(x.jaxpr) for x in equation.params["branches"]
                ]
                chosen = (max if self.refresh else min)(branches, key=lambda x: x.flops)
                self.flops += times * chosen.flops
                self.bytes += times * chosen.bytes
                continue
            inner = list(inner_programs(equation))
            repeated = times * equation.params["length"] if name == "scan" else times
            for x in inner:
                self.add(x, repeated)
            flops = 0 if inner else _flops(equation)
            if flops:
                arrays = [*equation.invars, *equation.outvars]
                self.flops += times * flops
                self.bytes += times * sum(x.aval.size * x.aval.dtype.itemsize for x in arrays)
        return self


def _flops(equation: Any) -> float:
    name = equation.primitive.name
    shape: Any = equation.invars[0].aval.shape if equation.invars else ()
    if name == "dot_general":
        return float(product_flops(equation))
    if name in ("cholesky", "triangular_solve"):
        return math.prod(equation.outvars[0].aval.shape) * shape[-1] / (3 if "y" in name else 1)
    if name == "eigh":
        return 9.0 * shape[-1] ** 3
    if name == "svd":
        short, long = sorted(shape[-2:])
        return 4.0 * long**2 * short + 8.0 * long * short**2 + 9.0 * short**3
    return 0


def cost_of(tx: optax.GradientTransformation, shape: tuple[int, int]) -> tuple[float, ...]:
    """Of one matrix: FLOPs and bytes of a step without a refresh, and what a refresh adds."""
    params = {"mlp": jax.ShapeDtypeStruct(shape, jnp.float32)}
    state = jax.eval_shape(tx.init, params)

    def plain(grads: Any, state: Any, params: Any) -> Any:
        # The count is a number, so that the compiler leaves the refresh out.
        updates, state = tx.update(grads, set_count(state, 1), params)
        return optax.apply_updates(params, updates), state

    program = jax.make_jaxpr(tx.update)(params, state, params).jaxpr
    least, most = Cost(refresh=False).add(program), Cost(refresh=True).add(program)
    counted = jax.jit(plain).lower(params, state, params).compile().cost_analysis()
    assert counted is not None
    return (
        least.flops,
        counted["bytes accessed"],
        most.flops - least.flops,
        most.bytes - least.bytes,
    )


def predictions() -> list[dict[str, Any]]:
    """The rows, by model, chip and optimizer."""
    rows = []
    for model, rank in MODELS.items():
        config, _ = load_model_config(model)
        hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_layers
        ends = hidden * config.vocab_size  # of the embedding, and as many of the head
        shapes = collections.Counter({(hidden, hidden): 4 * layers})
        shapes.update({(hidden, inner): 2 * layers, (inner, hidden): layers})
        weights = sum(m * n * count for (m, n), count in shapes.items())
        for name, tx in optimizers(rank, Moved()).items():
            total = [0.0] * 4
            for shape, count in shapes.items():
                total = [x + count * y for x, y in zip(total, cost_of(tx, shape), strict=True)]
            total[1] += 4 * 7 * 2 * ends  # Adam reads four arrays and writes three
            for chip in CHIPS:
                passes = 6 * (weights + ends) * TOKENS / CHIPS[chip][0]
                row = {"model": model, "rank": rank, "chip": chip, "optimizer": name}
                rows.append(row | _predicted(chip, GAPS.get(name, 1), passes, total))
    return rows


def _predicted(chip: str, gap: int, passes: float, cost: list[float]) -> dict[str, Any]:
    """Milliseconds and shares on one chip."""
    flops, moved, more_flops, more_moved = cost
    fast, exact, bandwidth = CHIPS[chip]
    update = max(flops / fast, moved / bandwidth)
    refresh = max(more_flops / exact, more_moved / bandwidth)
    return {
        "update_gflop": flops / 1e9,
        "update_gbyte": moved / 1e9,
        "refresh_gflop": more_flops / 1e9,
        "forward_backward_ms": 1e3 * passes,
        "update_ms": 1e3 * update,
        "refresh_ms": 1e3 * refresh,
        "mean_share_percent": share(update + refresh / gap, passes),
        "slowest_share_percent": share(update + refresh, passes),
    }

"""What the hostile campaign tries: optimizers on odd trees, bad gradients, and plain mistakes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import GaLoreDimensionNumbers, MuonDimensionNumbers

import fira_jax

STEPS, RECOVERY = 6, 3  # hostile steps, then ordinary ones


def choose(rng: np.random.Generator, options: Any) -> Any:
    """One of a list; lists of tuples are no arrays to us."""
    return options[rng.integers(len(options))]


# --- optimizers and trees ---------------------------------------------------------------------

MATRICES = [(1, 1), (1, 5), (5, 1), (3, 4), (4, 3), (4, 4), (6, 9), (9, 6)]
STACKS = [(2, 3, 4), (1, 4, 3), (2, 2, 2, 5)]
OTHERS = [(), (1,), (5,), (0,), (0, 4), (4, 0), (2, 0, 3), (0, 3, 4)]


@dataclasses.dataclass(frozen=True)
class Structure:
    """An optimizer and the parameters it is for; all cases of one share a compiled program."""

    tx: optax.GradientTransformation
    params: Any
    gap: int
    description: str


def structure(rng: np.random.Generator) -> Structure:
    """A legal one, however odd."""
    dtype = choose(rng, [np.float32, jnp.bfloat16])
    sizes = [choose(rng, MATRICES + STACKS + OTHERS) for _ in range(rng.integers(0, 4))]
    sizes += [choose(rng, MATRICES + STACKS)] if rng.random() < 0.9 else []
    leaves = [rng.standard_normal(size).astype(dtype) for size in sizes]
    options: dict[str, Any] = {
        "rank": choose(rng, [1, 2, 3, 100, np.int64(2)]),
        "update_proj_gap": choose(rng, [1, 2, 3]),
        "scale": choose(rng, [0.25, 1.0, 1, np.float32(2.0)]),
        "side": choose(rng, ["short", "long"]),
        "basis": choose(rng, ["svd", "randomized", "dct", "random"]),
        "refresh": choose(rng, ["fixed", "staggered"]),
        "weight_decay": choose(rng, [0.0, 0.1]),
        "basis_dtype": choose(rng, [None, None, jnp.bfloat16, jnp.float32]),
        "seed": int(rng.integers(1000)),
    }
    if rng.random() < 0.2:
        options["base_optimizer"] = choose(
            rng, [optax.scale_by_lion(), optax.scale_by_rms(), optax.trace(0.9)]
        )
    else:
        options["moments"] = choose(
            rng, ["keep", "carry"] if options["basis"] != "random" else ["keep"]
        )
        options["mu_dtype"] = choose(rng, [None, jnp.bfloat16])
    method = choose(rng, [fira_jax.fira, fira_jax.fira, fira_jax.galore])
    if method is fira_jax.fira:
        options["form"] = choose(rng, ["released", "paper"])
        options["granularity"] = choose(rng, ["column", "matrix"])
        options["gamma"] = choose(rng, [1.01, 1, None])
    tree = container(rng, leaves)
    options["weight_dimension_numbers"] = dimension_numbers(rng, tree)
    learning_rate = choose(rng, [0.1, optax.linear_schedule(0.1, 0.0, 20), lambda count: 0.1])
    shown = {k: v for k, v in options.items() if v is not None}
    return Structure(
        method(learning_rate, **options),
        tree,
        options["update_proj_gap"],
        f"{method.__name__} {np.dtype(dtype).name} {sizes} {shown}",
    )


def container(rng: np.random.Generator, leaves: list[Any]) -> Any:
    """The leaves in one of the trees people use."""
    if len(leaves) == 1 and rng.random() < 0.3:
        return leaves[0]
    return choose(
        rng,
        [
            {str(i): x for i, x in enumerate(leaves)},
            {"layers": list(leaves), "nothing": None},
            {"model": {"blocks": tuple({"w": x} for x in leaves)}, "empty": {}},
            tuple(leaves),
        ],
    )


def dimension_numbers(rng: np.random.Generator, tree: Any) -> Any:
    """Any legal way to say which axes form the matrices."""

    def fitting(x: Any) -> Any:
        if x.ndim < 2 or rng.random() < 0.1:
            return None
        order = rng.permutation(x.ndim)
        cut = int(rng.integers(1, x.ndim))
        first, second = (tuple(int(i) for i in axes) for axes in (order[:cut], order[cut:]))
        # The last axis of three or more may be left to the batch.
        second = second[:1] if rng.random() < 0.5 else second
        kind = choose(rng, [MuonDimensionNumbers, GaLoreDimensionNumbers])
        return kind(first, second)

    specs = jax.tree.map(fitting, tree)
    options = [None, MuonDimensionNumbers(-2, -1), specs, lambda params: specs]
    if any(x.ndim >= 2 for x in jax.tree.leaves(tree)):
        options.append(fira_jax.match_paths())
    return choose(rng, options)


# --- gradients --------------------------------------------------------------------------------


def _one(x: np.ndarray, value: float) -> np.ndarray:
    x = x.copy()
    x.reshape(-1)[: min(1, x.size)] = value
    return x


GRADIENTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "zero": np.zeros_like,
    "NaN": lambda x: np.full_like(x, np.nan),
    "one NaN": lambda x: _one(x, np.nan),
    "infinite": lambda x: np.full_like(x, np.inf),
    "one infinity": lambda x: _one(x, -np.inf),
    "denormal": lambda x: x * np.float32(1e-40),
    "tiny (1e-30)": lambda x: x * np.float32(1e-30),
    "large (1e18)": lambda x: x * np.float32(1e18),
    "huge (1e30)": lambda x: x * np.float32(1e30),
    "largest float": lambda x: np.sign(x) * np.finfo(np.float32).max,
    "constant": lambda x: np.full_like(x, -0.3),
    "rank 1": lambda x: np.broadcast_to(x[..., :1], x.shape).copy() if x.ndim else x,
    "one entry": lambda x: _one(np.zeros_like(x), 3.0),
    "one huge entry": lambda x: _one(x, 1e25),
}

MOMENTS_OF_TIME: dict[str, Callable[[int, int], bool]] = {
    "at the first step": lambda t, gap: t == 0,
    "at refreshes": lambda t, gap: t % gap == 0,
    "between refreshes": lambda t, gap: t % gap != 0,
    "at every step": lambda t, gap: True,
}


def history(rng: np.random.Generator, of: Structure) -> tuple[str, str, Any]:
    """What happens, when, and the gradients of all steps stacked along a new first axis."""
    when = choose(rng, [*MOMENTS_OF_TIME, "now and then"])
    what = choose(rng, list(GRADIENTS))
    mixed = when == "now and then"

    def grads(param: np.ndarray) -> np.ndarray:
        steps = rng.standard_normal((STEPS + RECOVERY, *param.shape)).astype(np.float32)
        for t in range(STEPS):
            if mixed and rng.random() < 0.5:
                steps[t] = GRADIENTS[choose(rng, [what, *GRADIENTS])](steps[t])
            elif not mixed and MOMENTS_OF_TIME[when](t, of.gap):
                steps[t] = GRADIENTS[what](steps[t])
        return steps.astype(param.dtype)

    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return what if not mixed else "a mixture", when, jax.tree.map(grads, of.params)


# --- mistakes ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Mistake:
    """Something that must be refused with a message that says what is wrong where."""

    kind: str
    act: Callable[[], Any]
    message_names: tuple[str, ...]


def mistake(rng: np.random.Generator) -> Mistake:
    """A random one."""
    method = choose(rng, [fira_jax.fira, fira_jax.galore])
    shape = choose(rng, MATRICES)
    good = {"q": jnp.ones(shape)}

    def argument(kind: str, name: str, values: list[Any]) -> Mistake:
        value = choose(rng, values)
        return Mistake(kind, lambda: method(0.1, **{name: value}).init(good), (name,))

    def leaf(kind: str, value: Any, *names: str) -> Mistake:
        tree = {"layers": [good, {"bad": value}]}
        return Mistake(kind, lambda: method(0.1, 2).init(tree), ("layers/1/bad", *names))

    def axes(kind: str, reduction: Any, output: Any) -> Mistake:
        kinds = choose(rng, [MuonDimensionNumbers, GaLoreDimensionNumbers])
        numbers = {"q": kinds(reduction, output)}
        return Mistake(
            kind,
            lambda: method(0.1, 2, weight_dimension_numbers=numbers).init(good),
            ("'q'", str(shape)),
        )

    def other_tree() -> Any:
        tx = method(0.1, 2)
        state = tx.init(good)
        return tx.update(choose(rng, [{}, {**good, "r": jnp.ones(2)}]), state, good)

    def other_shape() -> Any:
        tx = method(0.1, 2)
        state = tx.init({"q": jnp.ones((6, 9))})
        wrong = {"q": jnp.ones(choose(rng, [(6, 8), (1, 9), (3, 6, 9), (6,), ()]))}
        return tx.update(wrong, state, wrong)

    dtype = choose(rng, [jnp.int32, jnp.uint8, jnp.bool_])
    outside = int(choose(rng, [2, 5, -3, 100]))
    unknown = {"side": "left", "basis": "qr", "refresh": "never", "moments": "forget"}
    name = choose(rng, sorted(unknown))
    return choose(
        rng,
        [
            argument("rank below 1", "rank", [0, -1, -100]),
            argument("rank not an int", "rank", [1.0, 2.5, "4", None, True, jnp.array(3)]),
            argument("gap below 1", "update_proj_gap", [0, -1]),
            argument("gap not an int", "update_proj_gap", [200.0, False, jnp.array(3)]),
            argument("unknown name", name, [unknown[name]]),
            argument("dtype not floating", choose(rng, ["basis_dtype", "mu_dtype"]), [jnp.int8]),
            leaf("integer leaf", jnp.ones(shape, dtype), str(shape), str(jnp.dtype(dtype))),
            leaf("complex leaf", jnp.ones(shape, jnp.complex64), str(shape), "complex64"),
            leaf("leaf that is no array", choose(rng, [1.0, "w", object()])),
            axes("axis out of range", outside, 0),
            axes("axis out of range", (0, outside), 1),
            axes("duplicated axis", 1, -1),
            axes("duplicated axis", (0, 1), 0),
            axes("no axis", (), 1),
            axes("no axis", 0, ()),
            Mistake(
                "no dimension numbers for a leaf",
                lambda: method(0.1, weight_dimension_numbers={"k": None}).init(good),
                ("'q'",),
            ),
            Mistake(
                "pattern that matches nothing",
                lambda: method(0.1, weight_dimension_numbers=fira_jax.match_paths("atn")).init(
                    good
                ),
                ("atn", "q"),
            ),
            Mistake("gamma below 1", lambda: fira_jax.fira(0.1, gamma=0.9), ("gamma",)),
            Mistake("update of another tree", other_tree, ("leaves",)),
            Mistake("update of another shape", other_shape, ("shape",)),
        ],
    )

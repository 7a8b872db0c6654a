"""Run by test_sharding.py in a process of its own: eight devices do what one does.

Usage: python on_eight_devices.py {Auto,Explicit} CHECK
"""

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import fira_jax

SPECS = {
    "both": P("fsdp", "tensor"),
    "stack": P(None, None, "fsdp"),
    "heads": P("fsdp", "tensor", None),
    "bias": P("tensor"),
}
SHAPES = {
    "both": (32, 64),
    "stack": (3, 64, 32),
    "heads": (32, 4, 16),
    "bias": (16,),
}
NUMBERS = {
    "both": optax.contrib.MuonDimensionNumbers(),
    "stack": optax.contrib.MuonDimensionNumbers(1, 2),
    "heads": optax.contrib.MuonDimensionNumbers(0, (1, 2)),
    "bias": None,
}
LEARNING_RATE, GAP = 1e-2, 3


def normal(seed: int) -> dict[str, jax.Array]:
    """An array for each parameter."""
    keys = jax.random.split(jax.random.key(seed), len(SHAPES))
    return {
        name: jax.random.normal(key, shape)
        for key, (name, shape) in zip(keys, SHAPES.items(), strict=True)
    }


def make_mesh(kind: str) -> jax.sharding.Mesh:
    """Four by two devices."""
    return jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType[kind],) * 2)


def shardings_on(mesh: jax.sharding.Mesh) -> dict[str, NamedSharding]:
    """One for each parameter."""
    return {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}


def train(tx, params, state, target, steps=GAP + 2):
    """Some steps past a refresh, pulled towards ``target``, in one program."""

    @jax.jit
    def run(params, state, target):
        def step(carry, _):
            params, state = carry
            grads = jax.tree.map(lambda p, t: p - t, params, target)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), None, length=steps)[0]

    return run(params, state, target)


def compare(tx, mesh) -> None:
    """Trains on one device and on eight, from a state that is made where it belongs."""
    params, target, shardings = normal(0), normal(1), shardings_on(mesh)
    alone, _ = train(tx, params, tx.init(params), target)
    spread, spread_target = jax.device_put((params, target), (shardings, shardings))
    state_shardings = fira_jax.state_shardings(tx, params, shardings)
    state = jax.jit(tx.init, out_shardings=state_shardings)(spread)
    before = jax.tree.map(jax.typeof, state)
    together, state = train(tx, spread, state, spread_target)
    assert before == jax.tree.map(jax.typeof, state), "the state's types changed"
    for name in SHAPES:
        moved = np.abs(alone[name] - params[name]).max()
        gap = np.abs(np.asarray(together[name]) - np.asarray(alone[name])).max()
        assert gap <= 5e-3 * moved, (name, gap, moved)
        assert moved > 0, name
        if mesh.axis_types[0] == AxisType.Explicit:
            assert jax.typeof(together[name]).sharding.spec == SPECS[name], name


def fira(mesh) -> None:
    """Nothing around it; the state is spread over all devices."""
    tx = fira_jax.fira(LEARNING_RATE, 6, GAP, weight_dimension_numbers=NUMBERS)
    compare(tx, mesh)
    shardings = shardings_on(mesh)
    spread = jax.device_put(normal(0), shardings)
    state = jax.jit(tx.init, out_shardings=fira_jax.state_shardings(tx, spread, shardings))(spread)
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
    total = sum(x.nbytes for x in jax.tree.leaves(state))
    assert held < 0.25 * total, (held, total)  # one parameter is split by four only


def galore_with_traced_hyperparameters(mesh) -> None:
    """An exact SVD; ``scale``, ``b1`` ... are arrays of the state."""
    make = optax.inject_hyperparams(fira_jax.galore, static_args=("rank", "update_proj_gap"))
    tx = make(LEARNING_RATE, 6, GAP, weight_dimension_numbers=NUMBERS, basis="svd")
    compare(tx, mesh)


def apollo_in_partition(mesh) -> None:
    """One method for the matrices and another for the rest, in a chain."""
    labels = {name: "rest" if name == "bias" else "matrix" for name in SHAPES}
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.partition(
            {
                "matrix": fira_jax.apollo(
                    LEARNING_RATE,
                    6,
                    GAP,
                    weight_dimension_numbers=fira_jax.match_paths(),
                ),
                "rest": optax.adamw(LEARNING_RATE),
            },
            labels,
        ),
    )
    compare(tx, mesh)


def nnx_optimizer(mesh) -> None:
    """A sharded Flax model: its metadata must not reach the state, whose rank is indivisible."""
    shardings = shardings_on(mesh)

    class Model(nnx.Module):
        def __init__(self):
            values = jax.device_put(normal(0), shardings)
            self.both = nnx.Param(values["both"], out_sharding=SPECS["both"])
            self.stack = nnx.Param(values["stack"], out_sharding=SPECS["stack"])

    tx = fira_jax.fira(LEARNING_RATE, 5, weight_dimension_numbers=fira_jax.match_paths())
    with jax.set_mesh(mesh):
        model = Model()
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

        @nnx.jit
        def step(model, optimizer):
            def loss(model):
                return jnp.sum(model.both[...] ** 2) + jnp.sum(model.stack[...] ** 2)

            optimizer.update(model, nnx.grad(loss)(model))

        before = np.asarray(model.both[...])
        step(model, optimizer)
        assert np.abs(np.asarray(model.both[...]) - before).max() > 0
        assert np.isfinite(np.asarray(model.stack[...])).all()


def sizes_of_all_gathers(compiled) -> list[int]:
    """Numbers in the result of each all-gather of a compiled program."""
    return [
        int(np.prod([int(n) for n in dims.split(",") if n]))
        for dims in re.findall(r"= \w+\[([\d,]*)\]\S* all-gather\(", compiled.as_text())
    ]


def refresh_gathers_no_matrix(mesh) -> None:
    """The largest all-gather of a step with a refresh is far below a gradient matrix."""
    a, b, rank = 128, 256, 8
    shapes = {"up": (3, a, b), "down": (3, b, a), "q": (a, a), "o": (a, a)}
    layouts = {
        "both": {
            "up": P(None, "fsdp", "tensor"),
            "down": P(None, "tensor", "fsdp"),
            "q": P("fsdp", "tensor"),
            "o": P("tensor", "fsdp"),
        },
        "fsdp": {
            "up": P(None, ("fsdp", "tensor")),
            "down": P(None, ("fsdp", "tensor")),
            "q": P(("fsdp", "tensor")),
            "o": P(None, ("fsdp", "tensor")),
        },
    }
    tx = fira_jax.fira(LEARNING_RATE, rank, weight_dimension_numbers=fira_jax.match_paths())
    for layout, specs in layouts.items():
        shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
        params = {
            name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=shardings[name])
            for name, shape in shapes.items()
        }
        state_shardings = fira_jax.state_shardings(tx, params, shardings)
        state = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            jax.eval_shape(tx.init, params),
            state_shardings,
        )
        step = jax.jit(tx.update, out_shardings=(shardings, state_shardings))
        gathered = sizes_of_all_gathers(step.lower(params, state, params).compile())
        assert gathered, layout
        # Not counting layers: coordinates of all three are gathered at once.
        assert max(gathered) <= 3 * rank * b < a * a / 2, (layout, max(gathered))


def exact_svd_is_dealt_out(mesh) -> None:
    """Eleven matrices in two rounds; a device receives one of each round, and gathers nothing."""
    shapes = {"up": (8, 16, 24), "down": (3, 24, 16)}
    specs = {"up": P(None, "fsdp", "tensor"), "down": P(None, "tensor", "fsdp")}
    low_rank = fira_jax.LowRank(
        4, GAP, basis="svd", weight_dimension_numbers=fira_jax.match_paths()
    )
    tx = fira_jax.low_rank_project(low_rank)
    grads = {
        name: jax.random.normal(jax.random.key(i), shape)
        for i, (name, shape) in enumerate(shapes.items())
    }
    state = tx.init(grads)
    expected = jax.jit(lambda grads, state: tx.update(grads, state)[1])(grads, state).bases
    shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    state_shardings = fira_jax.state_shardings(tx, grads, shardings)
    spread = jax.device_put((grads, state), (shardings, state_shardings))
    with jax.set_mesh(mesh):
        refresh = jax.jit(
            lambda grads, state: tx.update(grads, state)[1], out_shardings=state_shardings
        )
        compiled = refresh.lower(*spread).compile()
        found = compiled(*spread).bases
    for name in shapes:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5)
    text = compiled.as_text()
    factorized = re.findall(r"= \(f32\[([\d,]*)\]\S*, .*gesdd", text)
    assert factorized == ["16,24"], factorized
    assert re.search(r"f32\S* all-to-all\(", text), "matrices do not move"
    assert "all-gather" not in text, "a matrix is gathered"


def whole_updates_are_dealt_out(mesh) -> None:
    """On a known mesh no device gathers what is orthogonalized, nor single matrices' gradients."""
    a, b, rank = 128, 256, 8
    across, along = P("fsdp", "tensor"), P("tensor", "fsdp")
    singles = {f"{name}{i}": (a, a) for name in "qo" for i in range(3)}
    shapes = {"gate": (2, a, b), "up": (3, a, b), "down": (3, b, a), **singles}
    specs = {"gate": P(None, *along), "up": P(None, *across), "down": P(None, *along)}
    specs |= {name: across if name[0] == "q" else along for name in singles}
    shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    # Of a few strong directions: among equal ones rounding would choose.
    grads = {
        name: jax.random.normal(jax.random.key(i), shape) / jnp.arange(1.0, shape[-1] + 1)
        for i, (name, shape) in enumerate(shapes.items())
    }
    tx = fira_jax.fira_orthogonal(
        LEARNING_RATE, rank, weight_dimension_numbers=fira_jax.match_paths()
    )
    state = tx.init(grads)
    expected, _ = jax.jit(tx.update)(grads, state, grads)
    state_shardings = fira_jax.state_shardings(tx, grads, shardings)
    with jax.set_mesh(mesh):
        spread = jax.device_put((grads, state, grads), (shardings, state_shardings, shardings))
        step = jax.jit(tx.update, out_shardings=(shardings, state_shardings))
        compiled = step.lower(*spread).compile()
        found, _ = compiled(*spread)
    for name, update in expected.items():
        np.testing.assert_allclose(found[name], update, atol=5e-4 * np.abs(update).max())
    # Coordinates of all three layers of a stack are gathered at once, as in any step of Fira.
    assert max(sizes_of_all_gathers(compiled)) <= 3 * rank * b < a * a / 2


def memory_is_what_each_device_has(mesh) -> None:
    """The bytes that are predicted for a device are those of the arrays it holds."""
    adam = fira_jax.precision.quantize_state(optax.scale_by_adam())
    methods = (
        fira_jax.fira(LEARNING_RATE, 6, GAP, weight_dimension_numbers=NUMBERS),
        fira_jax.galore(LEARNING_RATE, 6, base_optimizer=adam, weight_dimension_numbers=NUMBERS),
        optax.adamw(LEARNING_RATE),
    )
    shardings = shardings_on(mesh)
    params = jax.device_put(normal(0), shardings)
    for tx in methods:
        init = jax.jit(tx.init, out_shardings=fira_jax.state_shardings(tx, params, shardings))
        predicted = fira_jax.memory(tx, params, shardings)
        for tree, size in (
            (init(params), predicted.state_bytes),
            (params, predicted.weight_bytes),
        ):
            held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))
            assert size == held, (tx, size, held)


def a_large_rank_is_traced_for_any_platform(mesh) -> None:
    """Blocks of columns, as a TPU takes them, are traced everywhere, explicit axes or not."""
    gate = jax.ShapeDtypeStruct((2, 768, 1024), jnp.float32)
    shardings = NamedSharding(mesh, P(None, "fsdp", "tensor"))
    for basis in ("oja", "randomized", fira_jax.basis.PowerIteration()):
        tx = fira_jax.fira(
            LEARNING_RATE, 256, basis=basis, weight_dimension_numbers=fira_jax.match_paths()
        )
        state = jax.eval_shape(tx.init, gate)
        state_shardings = fira_jax.state_shardings(tx, gate, shardings)
        with jax.set_mesh(mesh):
            spread = jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                (gate, state, gate),
                (shardings, state_shardings, shardings),
            )
            step = jax.jit(tx.update, out_shardings=(shardings, state_shardings))
            for platform in ("cpu", "tpu"):
                step.trace(*spread).lower(lowering_platforms=(platform,))


CHECKS = (
    fira,
    galore_with_traced_hyperparameters,
    apollo_in_partition,
    nnx_optimizer,
    refresh_gathers_no_matrix,
    exact_svd_is_dealt_out,
    whole_updates_are_dealt_out,
    a_large_rank_is_traced_for_any_platform,
    memory_is_what_each_device_has,
)

if __name__ == "__main__":
    chosen = make_mesh(sys.argv[1])
    for check in CHECKS:
        if check.__name__ in sys.argv[2:] or len(sys.argv) == 2:
            check(chosen)
            print(check.__name__, "ok", flush=True)

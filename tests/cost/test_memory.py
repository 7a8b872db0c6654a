"""What is predicted is what there is: bytes of state, and what is in memory at once."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

import fira_jax
from fira_jax.cost.liveness import peak

PARAMS = {"stack": (2, 8, 24), "wide": (64, 96), "norm": (16,)}
MATRICES = {"weight_dimension_numbers": fira_jax.match_paths(exclude="norm")}
METHODS = {
    "fira": fira_jax.fira(1e-2, rank=4, **MATRICES),
    "galore, 8 bits": fira_jax.galore(
        1e-2, 4, base_optimizer=fira_jax.precision.quantize_state(optax.scale_by_adam()), **MATRICES
    ),
    "q_galore": fira_jax.q_galore(1e-2, rank=4, **MATRICES),
    "apollo_mini": fira_jax.apollo_mini(1e-2, **MATRICES),
    "swan": fira_jax.swan(1e-2, **MATRICES),
    "adamw": optax.adamw(1e-2),
}


def arrays(dtype=jnp.float32, **shapes):
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", METHODS)
def test_bytes_are_those_of_the_real_state(name):
    params = {name: jnp.ones(shape, jnp.bfloat16) for name, shape in PARAMS.items()}
    found = fira_jax.memory(METHODS[name], params)
    assert found.state_bytes == sum(x.nbytes for x in jax.tree.leaves(METHODS[name].init(params)))
    assert found.weight_bytes == found.gradient_bytes == sum(x.nbytes for x in params.values())


def test_adam_needs_nothing_besides_and_a_refresh_its_matrix_in_float32():
    params = arrays(jnp.bfloat16, w=(512, 1024))
    assert fira_jax.memory(METHODS["adamw"], params).refresh_bytes < 100
    found = fira_jax.memory(fira_jax.fira(1e-2, rank=4), params)
    assert 4 * 512 * 1024 <= found.refresh_bytes < 2.5 * 4 * 512 * 1024
    assert found.largest == ((512, 1024), jnp.float32)
    assert "float32 512 x 1024" in str(found)


def test_each_device_has_its_share_but_factorizes_the_whole():
    mesh = AbstractMesh((4, 2), ("fsdp", "tensor"))
    params = arrays(w=(512, 1024))
    split = {"w": NamedSharding(mesh, P("fsdp", "tensor"))}

    def both(**options):
        tx = fira_jax.fira(1e-2, rank=4, **options)
        return fira_jax.memory(tx, params), fira_jax.memory(tx, params, split)

    alone, shared = both()
    assert shared.weight_bytes == alone.weight_bytes / 8
    assert alone.state_bytes / 8 < shared.state_bytes < alone.state_bytes / 7.9  # counters
    assert shared.refresh_bytes < alone.refresh_bytes / 4
    _, exact = both(basis="svd")
    assert exact.refresh_bytes >= 4 * 512 * 1024


def test_shardings_must_be_shardings():
    with pytest.raises(ValueError, match=r"parameter 'w'.*expected a NamedSharding, got 'fsdp'"):
        fira_jax.memory(optax.adam(1e-2), arrays(w=(8, 8)), {"w": "fsdp"})


SQUARE = 4 * 64 * 64


def count(f, *shapes):
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return peak(jax.make_jaxpr(f)(*args)).size


def test_entries_are_computed_where_they_are_read():
    assert count(lambda x: jnp.sum(jnp.exp(2 * x.T) + 1), (64, 64)) == 4
    assert count(lambda p, g: p - 0.1 * g, (64, 64), (64, 64)) == 0  # over p
    assert count(lambda p, g: (p - 0.1 * g, g + 1), (64, 64), (64, 64)) == 0
    assert count(lambda p, g: (p - 0.1 * g, p + g), (64, 64), (64, 64)) == SQUARE  # p is read again


def test_a_product_needs_its_operands_written():
    # The sum; then both, since it is read until the product is complete.
    assert count(lambda x, y: jnp.sum((x + 1) @ y), (64, 64), (64, 8)) == SQUARE + 4 * 64 * 8
    # Each tanh is written over the product it is made of.
    chain = lambda x, y: jnp.sum(jnp.tanh(jnp.tanh(x @ y) @ y) @ y)  # noqa: E731
    assert count(chain, (64, 64), (64, 64)) == 2 * SQUARE


def test_a_product_is_written_in_the_dtype_it_is_converted_to():
    half = lambda x, y: jnp.sum(jnp.sort((x @ y).astype(jnp.bfloat16)))  # noqa: E731
    assert count(half, (64, 64), (64, 64)) == SQUARE  # two halves: the product and it sorted


def test_what_is_written_first_and_read_last_may_be_written_later():
    def stages(*arrays):  # all products, then all sums: an optimizer in stages
        products = [x @ x for x in arrays]
        return [x + product for x, product in zip(arrays, products, strict=True)]

    assert count(stages, *[(64, 64)] * 5) == SQUARE


def test_a_loop_needs_what_one_iteration_needs():
    def scan(x):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ x), x[0]), x, None, length=7)

    # What is carried is in place; the product is not; a row of each of seven iterations.
    assert count(scan, (64, 64)) == SQUARE + 7 * 4 * 64


def test_of_branches_the_larger_counts():
    def choose(x):
        large = lambda: jnp.sum((x @ x) @ (x @ x))  # noqa: E731
        return jax.lax.cond(x[0, 0] > 0, large, lambda: jnp.sum(x @ x))

    assert count(choose, (64, 64)) == pytest.approx(3 * SQUARE, abs=100)

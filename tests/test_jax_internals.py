"""What the library takes for granted about the insides of JAX."""

import jax
import jax.numpy as jnp
import pytest

from fira_jax import jax_internals as internals


def only(f, name, *args):
    """The one equation of that name in a traced function."""
    equations = jax.make_jaxpr(f)(*args).jaxpr.eqns
    return next(e for e in equations if e.primitive.name == name)


def test_a_scan_is_taken_apart():
    xs, weight, start = jnp.ones((5, 3)), jnp.ones((3, 3)), (jnp.ones(3), jnp.zeros((), int))

    def turn(carry, x):
        y = weight @ carry[0] + x
        return (y, carry[1] + 1), y[:2]

    loop = internals.loop_of(only(lambda s, xs: jax.lax.scan(turn, s, xs), "scan", start, xs))
    assert (loop.constants, loop.carried, len(loop.bodies)) == (1, 2, 1)
    shapes = [v.aval.shape for v in loop.bodies[0].jaxpr.invars]
    assert shapes == [(3, 3), (3,), (), (3,)]


def test_a_while_loop_and_a_choice_are_taken_apart():
    def double(x):
        step = jnp.ones(2) * x[0]
        return jax.lax.while_loop(lambda y: y[0] < 9, lambda y: y + step, x)

    loop = internals.loop_of(only(double, "while", jnp.ones(2)))
    assert (loop.constants, loop.carried) == (1, 1)
    choice = only(lambda x: jax.lax.cond(x[0] > 0, jnp.sin, jnp.cos, x), "cond", jnp.ones(2))
    branches = {e.primitive.name for x in internals.loop_of(choice).bodies for e in x.jaxpr.eqns}
    assert branches == {"sin", "cos"}


@pytest.mark.parametrize(
    ("f", "inside"),
    [
        (jax.jit(jnp.sin), {"sin"}),
        (lambda x: jax.lax.cond(x > 0, jnp.sin, jnp.cos, x), {"sin", "cos"}),
        (lambda x: jax.lax.fori_loop(0, 3, lambda _, y: jnp.sin(y), x), {"sin"}),
    ],
)
def test_programs_inside_are_found(f, inside):
    equations = jax.make_jaxpr(f)(1.0).jaxpr.eqns
    found = {
        e.primitive.name for x in equations for p in internals.inner_programs(x) for e in p.eqns
    }
    assert inside <= found


def test_what_depends_on_what():
    program = jax.make_jaxpr(lambda x, y, z: (x + y, z))(1.0, 2.0, 3.0).jaxpr
    assert list(internals.inputs_used(program, [True, False])) == [True, True, False]
    assert list(internals.inputs_used(program, [False, True])) == [False, False, True]


@pytest.mark.parametrize(
    ("f", "kind"),
    [
        (lambda x: x.T, internals.VIEWS),
        (lambda x: x @ x, internals.PRODUCTS),
        (jnp.sum, internals.REDUCTIONS),
        (lambda x: x * jnp.tanh(x), internals.ENTRYWISE),
        (jnp.linalg.svd, internals.FACTORIZATIONS),
        (jnp.linalg.eigh, internals.FACTORIZATIONS),
    ],
)
def test_operations_are_still_called_so(f, kind):
    def names(program):
        for e in program.eqns:
            yield e.primitive.name
            for inner in internals.inner_programs(e):
                yield from names(inner)

    assert kind & set(names(jax.make_jaxpr(f)(jnp.ones((4, 4))).jaxpr))

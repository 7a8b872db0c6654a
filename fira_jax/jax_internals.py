"""All that relies on how JAX is made inside, which it may change from one version to the next.

Traced programs (jaxprs), the names of their operations and what depends on what in them. When a new
version of JAX breaks something here, this is the file to mend; ``tests/test_jax_internals.py`` says
what the rest of the library takes for granted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jax.interpreters import partial_eval

# What only looks at an array differently: no memory of its own.
VIEWS = frozenset((
    "copy", "dynamic_slice", "expand_dims", "reshape", "rev", "sharding_constraint", "slice",
    "split", "squeeze", "stop_gradient", "transpose",
))  # fmt: skip
# What a compiler computes where it is read, entry by entry, instead of writing it to memory.
ENTRYWISE = frozenset((
    "abs", "add", "add_any", "and", "atan2", "bitcast_convert_type", "broadcast_in_dim", "cbrt",
    "ceil", "clamp", "concatenate", "convert_element_type", "cos", "div", "eq", "erf", "erf_inv",
    "exp", "exp2", "expm1", "floor", "gather", "ge", "gt", "integer_pow", "iota", "is_finite", "le",
    "log", "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg", "nextafter", "not", "or",
    "pad", "pow", "reduce_precision", "rem", "round", "rsqrt", "select_n", "shift_left",
    "shift_right_arithmetic", "shift_right_logical", "sign", "sin", "sqrt", "square", "sub", "tan",
    "tanh", "xor",
))  # fmt: skip
# What reads its operands only once, so that they need not be written either.
REDUCTIONS = frozenset((
    "argmax", "argmin", "reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod",
    "reduce_sum",
))  # fmt: skip
PRODUCTS = frozenset(["conv_general_dilated", "dot_general"])
LOOPS = frozenset(["cond", "scan", "while"])
# What every device does with the whole of an array, however it is split.
FACTORIZATIONS = frozenset(["cholesky", "eigh", "geqrf", "householder_product", "lu", "qr", "svd"])


def is_literal(operand: Any) -> bool:
    """Whether an operand is a number written into the program."""
    return isinstance(operand, Literal)


def inner_programs(equation: Any) -> Iterator[Jaxpr]:
    """The programs inside of one equation: the body of a loop, a called function."""
    for value in equation.params.values():
        for x in value if isinstance(value, tuple | list) else (value,):
            if isinstance(x, ClosedJaxpr | Jaxpr):
                yield x.jaxpr if isinstance(x, ClosedJaxpr) else x


class Loop(NamedTuple):
    """What a loop or a choice consists of.

    Attributes:
      bodies: the program that is repeated, or the branches to choose from.
      constants: how many of the body's inputs come before the carried values.
      carried: how many values go from one turn to the next.
    """

    bodies: list[ClosedJaxpr]
    constants: int
    carried: int


def loop_of(equation: Any) -> Loop:
    """Takes an equation of :data:`LOOPS` apart."""
    params = equation.params
    if equation.primitive.name == "cond":
        return Loop(list(params["branches"]), 0, 0)
    if equation.primitive.name == "while":
        body = params["body_jaxpr"]
        return Loop([body], params["body_nconsts"], len(body.jaxpr.outvars))
    # A scan's parameters have changed their names. But what is scanned over or stacked up has one
    # axis more outside than inside, and comes last.
    body = params["jaxpr"]
    inside = body.jaxpr if isinstance(body, ClosedJaxpr) else body
    scanned = _with_one_axis_more(equation.invars, inside.invars)
    carried = len(equation.outvars) - _with_one_axis_more(equation.outvars, inside.outvars)
    return Loop([body], len(equation.invars) - scanned - carried, carried)


def _with_one_axis_more(outside: Sequence[Any], inside: Sequence[Any]) -> int:
    both = zip(outside, inside, strict=True)
    return sum(len(x.aval.shape) == len(y.aval.shape) + 1 for x, y in both)


def inputs_used(program: Jaxpr, outputs: Sequence[bool]) -> Sequence[bool]:
    """Which inputs of a program the chosen outputs depend on."""
    return partial_eval.dce_jaxpr(program, list(outputs))[1]

"""Counts what a program does, by running it operation by operation.

Loops whose length depends on the data are followed as far as they go, which no compiler's own count
can do.
"""

import collections
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from fira_jax.jax_internals import FACTORIZATIONS, inner_programs, loop_of

COUNTED = FACTORIZATIONS | {"triangular_solve"}


def count_operations(f: Callable[..., Any], *args: Any) -> dict[str, int]:
    """Matrix products by size, their FLOPs, factorizations and triangular solves of one call.

    Args:
      f: of arrays; the first is the gradient, whose size says which products are large.
      *args: real arrays: the run depends on them.
    """
    counts: collections.Counter[str] = collections.Counter()
    program = jax.make_jaxpr(f)(*args)
    _run(program.jaxpr, program.consts, jax.tree.leaves(args), counts, args[0].size)
    names = ("gradient_products", "other_products", "product_mflop", "factorizations", "solves")
    counts["product_mflop"] = round(counts["flop"] / 1e6)
    return {name: counts[name] for name in names}


def product_flops(equation: Any) -> int:
    """Of a traced ``dot_general``: two for each pair of factors."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return 2 * math.prod(shape[i] for i in contracted) * math.prod(equation.outvars[0].aval.shape)


def _run(
    program: Jaxpr, consts: Any, args: Any, counts: collections.Counter[str], large: int
) -> list[Any]:
    known = dict(zip(program.constvars, consts, strict=True))
    known |= dict(zip(program.invars, args, strict=True))
    for equation in program.eqns:
        values = [x.val if isinstance(x, Literal) else known[x] for x in equation.invars]
        results = _do(equation, values, counts, large)
        known |= dict(zip(equation.outvars, results, strict=True))
    return [x.val if isinstance(x, Literal) else known[x] for x in program.outvars]


def _do(equation: Any, values: list[Any], counts: collections.Counter[str], large: int) -> Any:
    name, params = equation.primitive.name, equation.params

    def call(program: ClosedJaxpr | Jaxpr, values: list[Any]) -> list[Any]:
        if isinstance(program, ClosedJaxpr):
            return _run(program.jaxpr, program.consts, values, counts, large)
        return _run(program, [], values, counts, large)

    if name == "while":
        ahead, behind = params["cond_nconsts"], params["body_nconsts"]
        of_test, of_body = values[:ahead], values[ahead : ahead + behind]
        carry = values[ahead + behind :]
        while call(params["cond_jaxpr"], [*of_test, *carry])[0]:
            carry = call(params["body_jaxpr"], [*of_body, *carry])
        return carry
    if name == "scan":
        loop = loop_of(equation)
        if loop.carried != len(equation.outvars) or loop.constants + loop.carried != len(values):
            raise NotImplementedError("a scan over arrays: only loops by fori_loop are followed")
        carry = values[loop.constants :]
        for _ in range(params["length"]):
            carry = call(params["jaxpr"], [*values[: loop.constants], *carry])
        return carry
    if name == "cond":
        return call(params["branches"][int(values[0])], values[1:])
    if name in COUNTED:
        counts["solves" if name == "triangular_solve" else "factorizations"] += 1
    elif name == "dot_general":
        counts["flop"] += product_flops(equation)
        counts["gradient_products" if large in (x.size for x in values) else "other_products"] += 1
    else:
        inner_ones = list(inner_programs(equation))
        if name in ("jit", "pjit", "closed_call", "custom_jvp_call") and inner_ones:
            body = params["jaxpr" if "jaxpr" in params else "call_jaxpr"]
            return call(body, values)
    results = equation.primitive.bind(*values, **params)
    return results if equation.primitive.multiple_results else [results]

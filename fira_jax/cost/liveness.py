"""How much of a traced program is in memory at once, as a compiler would arrange it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from fira_jax.jax_internals import (
    ENTRYWISE,
    FACTORIZATIONS,
    LOOPS,
    PRODUCTS,
    REDUCTIONS,
    VIEWS,
    ClosedJaxpr,
    Jaxpr,
    is_literal,
    loop_of,
)

Size = Callable[[tuple[int, ...], Any], int]
"""Bytes of an array, by shape and dtype."""

# What may write its result over an operand that nothing reads afterwards.
_IN_PLACE = ENTRYWISE | LOOPS | {"dynamic_update_slice", "optimization_barrier", "scatter-add"}


@dataclasses.dataclass(eq=False)
class Array:
    """An array of the program; views of it are the same one."""

    shape: tuple[int, ...]
    dtype: Any
    size: int
    stored: bool = True  # or computed wherever it is read


@dataclasses.dataclass(frozen=True)
class Peak:
    """The moment at which most is in memory.

    Attributes:
      size: bytes, besides the program's inputs and the outputs that are written over them.
      arrays: what they consist of.
    """

    size: int = 0
    arrays: tuple[Array, ...] = ()


@dataclasses.dataclass(eq=False)
class _Operation:
    name: str
    reads: list[Array]
    writes: list[Array]
    inside: Peak = Peak()


def peak(closed: ClosedJaxpr, size: Size | None = None) -> Peak:
    """The most that a program needs at once besides its inputs.

    Inputs are taken to be donated: an output of the shape and dtype of one is written over it once
    nothing reads it any more. The rules of the rest are those by which XLA works, in their simplest
    form:

    - what is computed entry by entry is not written to memory unless a matrix product, a loop or
      another operation that reads entries more than once needs it; views never are;
    - a product that is only combined entry by entry with others is written in the dtype that this
      ends in;
    - an array is in memory from the operation that writes it to the last that reads it;
    - operations run in the order as written, or each that takes more memory than it frees as late
      as possible and the largest results first, whichever order needs less.

    Args:
      closed: the program, as ``jax.make_jaxpr`` gives it.
      size: bytes of an array; by default those of its entries. For a program that runs on several
        devices, the bytes of one device's share.
    """
    program = _Program(closed, size or nbytes)
    unused: dict[Any, list[Array]] = {}
    for x in program.inputs:
        unused.setdefault((x.shape, x.dtype), []).append(x)
    over: dict[Array, Array | None] = {}
    for x in program.outputs:
        same = unused.get((x.shape, x.dtype))
        if same and x not in program.inputs and x not in over:
            over[x] = same.pop(0)
    program.over = over
    return program.peak()


def nbytes(shape: tuple[int, ...], dtype: Any) -> int:
    """Bytes of an array on one device."""
    return math.prod(shape) * dtype.itemsize


class _Program:
    """A program without calls: each loop and each choice of a branch is one operation.

    Attributes:
      inputs: what it is given.
      outputs: what it returns.
      over: which output is written over which input; over None if that is memory of others.
    """

    def __init__(self, closed: ClosedJaxpr, size: Size):
        self._size = size
        self.inputs = [self._array(v) for v in closed.jaxpr.invars]
        self.over: dict[Array, Array | None] = {}
        operations: list[_Operation] = []
        self.outputs = self._inline(closed, self.inputs, operations)
        # A part of a stack is written where it belongs if it can be: not a product.
        self.products = {x for op in operations if op.name in PRODUCTS for x in op.writes}
        stored = _stored(operations, self.inputs, self.outputs)
        self._operations = _needed(stored, self.outputs)

    def peak(self) -> Peak:
        """That of the order as written or of the late one, whichever is less."""
        orders = self._operations, _late(self._operations, self.outputs)
        return min((_walk(x, self.outputs, self.over) for x in orders), key=lambda x: x.size)

    def _array(self, v: Any) -> Array:
        shape, dtype = tuple(v.aval.shape), v.aval.dtype
        return Array(shape, dtype, self._size(shape, dtype))

    def _inline(
        self, closed: Any, inputs: Sequence[Array], operations: list[_Operation]
    ) -> list[Array]:
        """Appends the operations of ``closed`` and returns its outputs."""
        jaxpr = closed.jaxpr if isinstance(closed, ClosedJaxpr) else closed
        known = dict(zip(jaxpr.invars, inputs, strict=True))
        known |= {v: self._array(v) for v in jaxpr.constvars}

        def read(v: Any) -> Array:
            return Array((), None, 0) if is_literal(v) else known[v]

        for eqn in jaxpr.eqns:
            name, reads = eqn.primitive.name, [read(v) for v in eqn.invars]
            called = [x for x in eqn.params.values() if isinstance(x, ClosedJaxpr | Jaxpr)]
            if name in VIEWS:
                sources = reads if len(reads) == len(eqn.outvars) else reads[:1] * len(eqn.outvars)
                known |= zip(eqn.outvars, sources, strict=True)
            elif (
                called
                and (name not in LOOPS or eqn.params.get("length") == 1)
                and len(called[0].in_avals) == len(reads)
            ):
                known |= zip(eqn.outvars, self._inline(called[0], reads, operations), strict=True)
            else:
                writes = [self._array(v) for v in eqn.outvars]
                for x in (*reads, *writes) if name in FACTORIZATIONS else ():
                    x.size = nbytes(x.shape, x.dtype)
                known |= zip(eqn.outvars, writes, strict=True)
                inside = self._inside(eqn) if name in LOOPS else Peak()
                operations.append(_Operation(name, reads, writes, inside))
        return [read(v) for v in jaxpr.outvars]

    def _inside(self, equation: Any) -> Peak:
        """What a loop or a choice needs besides what it reads and writes."""
        loop = loop_of(equation)
        bodies = [_Program(x, self._size) for x in loop.bodies]
        first, carried = loop.constants, loop.carried
        choice = equation.primitive.name == "cond"
        for body in bodies:  # results are in the memory of the loop's or the choice's own
            results = body.outputs[carried:]
            body.over = {x: None for x in results if choice or x not in body.products}
            body.over |= zip(body.outputs[:carried], body.inputs[first:], strict=False)
        return max((body.peak() for body in bodies), key=lambda x: x.size)


def _stored(
    operations: list[_Operation], inputs: list[Array], outputs: list[Array]
) -> list[_Operation]:
    """The operations that write to memory, reading from memory what the others are made of."""
    readers: dict[Array, list[_Operation]] = {}
    for op in operations:
        for x in op.reads:
            readers.setdefault(x, []).append(op)
    wanted, given = set(outputs), set(inputs)
    fused = ENTRYWISE | REDUCTIONS
    entrywise = [op for op in operations if op.name in ENTRYWISE]
    for x in (x for op in entrywise for x in op.writes):
        x.stored = x in wanted or any(r.name not in fused for r in readers.get(x, ()))
    after = {op: op.writes[0] for op in entrywise}
    for x in (x for op in operations if op.name in PRODUCTS for x in op.writes):
        end, only = x, readers.get(x, [])
        count = math.prod(x.shape)
        while len(only) == 1 and only[0] in after and math.prod(after[only[0]].shape) == count:
            end = after[only[0]]
            only = [] if end.stored else readers.get(end, [])
        x.size = min(x.size, end.size)  # written in that dtype at once
    made_of: dict[Array, dict[Array, None]] = {}
    kept = []
    for op in operations:
        reads: dict[Array, None] = {}
        for x in op.reads:
            reads |= {x: None} if x.stored or x in given else made_of[x]
        made_of |= dict.fromkeys(op.writes, reads)
        if any(x.stored for x in op.writes):
            kept.append(dataclasses.replace(op, reads=list(reads)))
    return kept


def _needed(operations: list[_Operation], outputs: list[Array]) -> list[_Operation]:
    """Without what no output needs."""
    wanted, needed = set(outputs), []
    for op in reversed(operations):
        if not wanted.isdisjoint(op.writes):
            needed.append(op)
            wanted.update(op.reads)
    return needed[::-1]


def _late(order: list[_Operation], outputs: list[Array]) -> list[_Operation]:
    """Moves each operation that takes more memory than it frees to just before its first reader.

    Results that nothing else reads come last, the largest first: they let go of most.
    """
    reads = {x for op in order for x in op.reads}
    last = [op for op in order if reads.isdisjoint(op.writes)]
    last.sort(key=lambda op: -sum(x.size for x in op.writes))
    order = [op for op in order if not reads.isdisjoint(op.writes)] + last
    late: list[_Operation] = []  # from the last to the first
    place: dict[Array, _Operation] = {}
    read, made = set(outputs), {x for op in order for x in op.writes}
    for op in reversed(order):
        freed = sum(x.size for x in op.reads if x in made and x not in read)
        readers = [place[x] for x in op.writes if x in place]
        if readers and sum(x.size for x in op.writes) > freed:
            late.insert(max(late.index(reader) for reader in readers) + 1, op)
        else:
            late.append(op)
        read |= set(op.reads)
        for x in op.reads:
            if x not in place or late.index(place[x]) < late.index(op):
                place[x] = op
    return late[::-1]


def _walk(
    order: list[_Operation],
    outputs: list[Array],
    over: dict[Array, Array | None],
) -> Peak:
    """Runs through the operations, and finds the moment at which most is alive."""
    last = {x: i for i, op in enumerate(order) for x in op.reads}
    last |= dict.fromkeys(outputs, len(order))
    alive: dict[Array, int] = {}
    total, best = 0, Peak()
    for i, op in enumerate(order):
        done = {x: None for x in op.reads if last[x] == i and x in alive}
        for x in op.writes:
            size, replaced = x.size, over.get(x)
            in_place = op.name in _IN_PLACE
            same = next((y for y in done if alive[y] == size), None) if in_place else None
            if x in over and (replaced is None or last.get(replaced, -1) < i + in_place):
                size = 0
            elif same is not None:
                done.pop(same)
                total -= alive.pop(same)
            alive[x] = size
            total += size
        if total + op.inside.size > best.size:
            arrays = tuple(x for x, size in alive.items() if size)
            best = Peak(total + op.inside.size, arrays + op.inside.arrays)
        for x in {*done, *(x for x in op.writes if x not in last)}:
            total -= alive.pop(x)
    return best

"""What a compiled program consists of: its kernels, and the bytes that they read and write."""

import math
import re
from typing import NamedTuple

_BYTES = {"f64": 8, "f32": 4, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "pred": 1, "u8": 1, "s8": 1}
# What an accelerator does nothing for.
_NOTHING = frozenset(("bitcast", "constant", "get-tuple-element", "parameter", "tuple"))
_INSTRUCTION = re.compile(r"%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")


class Count(NamedTuple):
    """Of a program's outermost computation.

    Attributes:
      kernels: how many are launched.
      bytes: read from and written to the chip's memory.
    """

    kernels: int
    bytes: int


def count(program: str) -> Count:
    """Counts kernels of a compiled program's text, and bytes.

    A kernel reads its whole operands and writes its whole results, each once, unless they lie in
    a TPU's fast memory (``S(1)``). Transfers between the two memories are bytes and no kernels;
    single numbers, which a TPU computes beside its kernels, are neither.
    """
    sizes: dict[str, int] = {}
    kernels = moved = 0
    for line in program[program.index("\nENTRY") :].splitlines():
        match = _INSTRUCTION.match(line.strip().removeprefix("ROOT "))
        if match is None:
            continue
        name, result, operation, rest = match.groups()
        arrays = _ARRAY.findall(result)
        sizes[name] = sum(array_bytes(*x) for *x, layout in arrays if "S(" not in layout)
        if operation.endswith("-start"):
            # Of a slice, what it is taken from stands first, in brackets.
            moved += array_bytes(*arrays[result.startswith("((")][:2])
        elif not (
            operation in _NOTHING
            or operation.endswith("-done")
            or "ConcatBitcast" in rest
            or (operation not in ("fusion", "custom-call") and not any(x[1] for x in arrays))
        ):
            operands = set(re.findall(r"%([\w.-]+)", rest.partition(")")[0]))
            kernels += 1
            moved += sizes[name] + sum(sizes[x] for x in operands)
    return Count(kernels, moved)


def array_bytes(dtype: str, shape: str) -> int:
    """The bytes of an array as a compiled program names it: ``f32``, ``512,128``."""
    return _BYTES.get(dtype, 4) * math.prod(int(n) for n in shape.split(",") if n)

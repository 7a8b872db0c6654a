"""Every method, basis and piece compiles for CPU, TPU and GPU; a few are tried where that can be.

The compilers need neither chip nor driver, only their packages; each runs in a process of its own,
so that this one never meets more than the CPU.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import compilers
from benchmarks.compiled_program import count

ROOT = Path(compilers.__file__).parents[1]
INSTALLED = {
    "v5e": importlib.util.find_spec("libtpu") or "TPU_LIBRARY_PATH" in os.environ,
    "h100": importlib.util.find_spec("jax_cuda12_plugin"),
    "rtx4090": importlib.util.find_spec("jax_cuda12_plugin"),
}


@pytest.mark.parametrize("compiler", compilers.COMPILERS)
def test_the_table_has_a_yes_for_each_of_them(compiler):
    rows = compilers.read(ROOT / compilers.RESULT)
    assert rows.keys() == compilers.cases().keys()
    assert [key for key, row in rows.items() if row.get(compiler, True) is not True] == []
    missing = [key for key, row in rows.items() if compiler not in row]
    if missing and not INSTALLED.get(compiler, compiler == "cpu"):
        pytest.skip(f"to be compiled where {compiler}'s compiler is installed: {missing}")
    assert not missing


@pytest.mark.slow
@pytest.mark.parametrize("compiler", INSTALLED)
def test_some_compile_here(compiler, tmp_path):
    if not INSTALLED[compiler]:
        pytest.skip(f"no compiler for {compiler} is installed")
    output = tmp_path / "compilers.json"
    command = [sys.executable, "-m", "benchmarks.compilers", "--compilers", compiler]
    command += ["--word", "paper", "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    compiled = [row[compiler] for row in compilers.read(output).values()]
    assert compiled == [True, True], done.stderr[-3000:]


PROGRAM = """HloModule small

ENTRY %main (x: f32[4,8], n: s32[]) -> f32[4,8] {
  %x = f32[4,8]{1,0:T(8,128)} parameter(0)
  %n = s32[]{:T(128)} parameter(1)
  %next = s32[]{:T(128)S(6)} add(%n, %n)
  %start = (f32[4,8]{1,0:T(8,128)S(1)}, f32[4,8]{1,0}, u32[]{:S(2)}) copy-start(%x)
  %part = ((f32[4,8]{1,0:T(8,128)}), f32[2,8]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%x)
  %done = f32[4,8]{1,0:T(8,128)S(1)} copy-done(%start)
  %both = (f32[4,8]{1,0}, bf16[8]{0:T(128)S(1)}) fusion(%done, /*index=1*/%x, %next), calls=%f
  %first = f32[4,8]{1,0} get-tuple-element(%both), index=0, metadata={op_name="x(%n)"}
  ROOT %out = bf16[4,8]{1,0} fusion(%first), kind=kLoop, calls=%g
}
"""


def test_kernels_and_what_they_move_are_counted():
    whole, half = 4 * 4 * 8, 4 * 2 * 8
    transfers = whole + half  # into the fast memory, where reading and writing is free
    fusions = (whole + whole) + (whole + whole // 2)
    assert count(PROGRAM) == (2, transfers + fusions)


@pytest.mark.parametrize("compiler", compilers.COUNTED)
def test_plain_steps_move_no_less_than_the_least(compiler):
    steps = compilers.read_steps(ROOT / compilers.RESULT)
    rows = {name: steps[compiler, name] for name in compilers.PLAIN_STEPS}
    assert all(row["over_the_least"] >= 0.999 for row in rows.values())

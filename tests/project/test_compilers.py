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

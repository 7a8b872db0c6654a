"""What `python -m tools.new_method` writes works at once, and is in every place it has to be."""

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fira_jax
from tools import new_method

EDITED = (
    "fira_jax/__init__.py",
    "docs/api/methods.md",
    "experiments/training/optimizers.py",
    "docs/figures/gallery_methods.py",
)
ARGUMENTS = ["my_method", "--title", "MyMethod", "--paper", "2501.00001"]


@pytest.fixture
def clone(tmp_path):
    """The files that a new method touches."""
    for name in EDITED:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(new_method.ROOT / name, tmp_path / name)
    (tmp_path / "fira_jax" / "methods").mkdir()
    (tmp_path / "tests" / "methods").mkdir(parents=True)
    return tmp_path


def contents(folder):
    return {path: path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_dry_run_shows_every_file_and_writes_none(clone, capsys):
    before = contents(clone)
    new_method.main([*ARGUMENTS, "--dry-run"], clone)
    assert contents(clone) == before
    shown = capsys.readouterr().out
    for name in (*EDITED, "fira_jax/methods/my_method.py", "tests/methods/test_my_method.py"):
        assert f"+++ {name}" in shown


def test_what_is_written_runs_and_passes_its_own_test(clone, monkeypatch):
    new_method.main(ARGUMENTS, clone)
    method = runpy.run_path(str(clone / "fira_jax" / "methods" / "my_method.py"))["my_method"]
    monkeypatch.setattr(fira_jax, "my_method", method, raising=False)
    tests = runpy.run_path(str(clone / "tests" / "methods" / "test_my_method.py"))
    for name in [name for name in tests if name.startswith("test_")]:
        tests[name]()
    for name in EDITED:
        added = set((clone / name).read_text().splitlines())
        added -= set((new_method.ROOT / name).read_text().splitlines())
        assert any("my_method" in line for line in added), name


def test_what_is_written_is_in_this_projects_style(clone):
    ruff = Path(sys.executable).with_name("ruff")
    if not ruff.exists():
        pytest.skip("ruff is not installed: make lint")
    new_method.main(ARGUMENTS, clone)
    for name in (*EDITED, "fira_jax/methods/my_method.py", "tests/methods/test_my_method.py"):
        if not name.endswith(".py"):
            continue
        for command in (("check",), ("format", "--check")):
            done = subprocess.run(
                [ruff, *command, "--stdin-filename", name, "-"],
                input=(clone / name).read_text(),
                cwd=new_method.ROOT,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout


def test_nothing_that_exists_is_overwritten(clone):
    new_method.main(ARGUMENTS, clone)
    before = contents(clone)
    with pytest.raises(SystemExit, match=r"my_method\.py is there already"):
        new_method.main(ARGUMENTS, clone)
    assert contents(clone) == before


@pytest.mark.parametrize("name", ["Sumo", "su-mo", "lambda", "../my_method"])
def test_a_name_that_is_none_is_refused(clone, name):
    with pytest.raises(SystemExit):
        new_method.main([name], clone)

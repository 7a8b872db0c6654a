"""The library's rooms: imports run one way, files and functions stay small, the picture is true."""

from __future__ import annotations

import ast
import html
import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("house", ROOT / "docs" / "figures" / "house.py")
house = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(house)

MODULES = house.modules()
FILES = [
    path for place in ("fira_jax", "experiments") for path in sorted((ROOT / place).rglob("*.py"))
]


def test_rooms_lean_only_on_those_below():
    order = list(house.ROOMS)
    upward = [(a, b) for a, b in house.arrows() if order.index(a) > order.index(b)]
    assert ("methods", "transforms") in house.arrows()
    assert upward == []


def test_no_module_imports_itself_through_others():
    below = {}
    for above, under in house.imports():
        below.setdefault(above, set()).add(under)

    def reach(module, seen):
        for other in below.get(module, ()):
            if other not in seen:
                seen.add(other)
                reach(other, seen)
        return seen

    assert [module for module in MODULES if module in reach(module, set())] == []


def test_the_picture_shows_the_present_imports():
    text = html.unescape(house.PICTURE.read_text())
    shown = re.search(r"<dc:description>(.*?)</dc:description>", text, re.DOTALL)[1]
    assert [tuple(pair) for pair in json.loads(shown)] == house.arrows(), (
        "run python docs/figures/house.py"
    )


def lines_of_code(function, source):
    """Lines of the body that are neither blank, comment nor docstring."""
    skipped = set()
    if ast.get_docstring(function) is not None:
        skipped = range(function.body[0].lineno, function.body[0].end_lineno + 1)
    lines = source.splitlines()
    return sum(
        bool(lines[i - 1].strip()) and not lines[i - 1].lstrip().startswith("#")
        for i in range(function.body[0].lineno, function.end_lineno + 1)
        if i not in skipped
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_small(path):
    source = path.read_text()
    long = {
        node.name: lines_of_code(node, source)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and lines_of_code(node, source) > 60
    }
    assert long == {}
    assert len(source.splitlines()) <= 350


def test_public_functions_are_not_modules_too():
    for module in MODULES:
        parent, _, name = module.rpartition(".")
        if parent in MODULES:
            public = {
                alias.asname
                for node in ast.walk(MODULES[parent])
                if isinstance(node, ast.ImportFrom)
                for alias in node.names
            }
            is_wing = (ROOT / Path(*module.split("."))).is_dir()
            assert is_wing or name not in public, module

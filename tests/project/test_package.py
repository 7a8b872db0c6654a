"""What an index page and an installed wheel show: light to import, the same version, live links."""

import re
import resource
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fira_jax

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def modules_after(statement):
    code = f"{statement}; import sys; print(*sys.modules, sep='\\n')"
    command = [sys.executable, "-c", code]
    return set(subprocess.run(command, check=True, text=True, capture_output=True).stdout.split())


def test_importing_brings_in_hardly_more_than_optax():
    """Pallas, checkify and shard_map took a quarter of Optax's own time, see `_LATER`."""
    more = modules_after("import fira_jax") - modules_after("import optax")
    others = {name for name in more if name.partition(".")[0] != "fira_jax"}
    assert len(others) <= 5, sorted(others)


@pytest.mark.slow
def test_importing_takes_a_tenth_longer_than_optax_at_most():
    def seconds(module):
        """Of the processor, so that what else runs here does not count; the best of three."""
        times = []
        for _ in range(3):
            before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
            subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
            times.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before)
        return min(times)

    assert seconds("fira_jax") <= 1.1 * seconds("optax")


def test_versions_agree():
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1]
    newest = re.search(r"^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    assert PROJECT["version"] == fira_jax.__version__ == cited == newest


def test_links_of_the_readme_work_on_an_index_page_too():
    """Absolute, and those into this repository lead to a file that is there."""
    readme = (ROOT / "README.md").read_text()
    targets = re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", readme)
    targets = [first or second for first, second in targets]
    assert len(targets) > 10
    assert not [target for target in targets if not target.startswith(("https://", "#"))]
    repository = PROJECT["urls"]["Repository"]
    raw = repository.replace("https://github.com", "https://raw.githubusercontent.com")
    inside = re.compile(f"(?:{re.escape(repository)}/(?:blob|tree)|{re.escape(raw)})/main/([^#]+)")
    paths = [match[1] for match in map(inside.match, targets) if match]
    assert paths
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_every_floor_is_a_floor_that_is_tested():
    """`make test-oldest` reads them by replacing >= by ==."""
    assert all(re.fullmatch(r"[a-z]+>=[0-9.]+", floor) for floor in PROJECT["dependencies"])

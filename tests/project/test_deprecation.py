"""The old names of the version before still work, and say what they are called now."""

import importlib
import re
import warnings
from pathlib import Path

import pytest

import fira_jax

RENAMED = fira_jax._RENAMED


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_name_works_and_warns_where_it_is_used(old):
    home, _, name = RENAMED[old].rpartition(".")
    with pytest.warns(DeprecationWarning, match=re.escape(RENAMED[old])) as caught:
        value = getattr(fira_jax, old)
    assert value is getattr(importlib.import_module(home), name)
    assert caught[0].filename == __file__


def test_new_names_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in dir(fira_jax):
            getattr(fira_jax, name)
    assert not RENAMED.keys() & set(dir(fira_jax))


def test_a_name_that_never_was_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'galor'"):
        _ = fira_jax.galor


def test_a_version_for_the_removal_is_named_and_ahead():
    """When that version is made, this fails until its old names are gone."""
    with pytest.warns(DeprecationWarning, match="goes in version") as caught:
        _ = fira_jax.rules
    (gone,) = re.findall(r"goes in version (\d+)\.(\d+)", str(caught[0].message))
    major, minor, _ = fira_jax.__version__.split(".")
    assert (int(major), int(minor)) < tuple(map(int, gone))


def test_the_changelog_names_what_was_renamed():
    changelog = (Path(__file__).parents[2] / "CHANGELOG.md").read_text()
    section = re.split(r"^## ", changelog, flags=re.MULTILINE)[1]
    # All states moved to one place, which is one line.
    renamed = {new.rpartition(".")[2] for new in RENAMED.values() if not new.endswith("State")}
    assert not [name for name in renamed if name not in section]

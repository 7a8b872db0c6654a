"""The gallery shows every method, with the state it really keeps."""

import importlib.util
import inspect
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import fira_jax
from experiments.training.optimizers import OPTIMIZERS

ROOT = Path(__file__).parents[2]


def load(name):
    path = ROOT / "docs" / "figures" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


gallery = load("gallery")
METHODS = {method.name: method for method in gallery.METHODS}


def test_every_method_is_shown_and_can_be_trained_with():
    functions = {
        name
        for name, value in vars(fira_jax).items()
        if inspect.isfunction(value)
        and "learning_rate" in inspect.signature(value).parameters
        and not name.startswith("_")
    }
    assert "fira" in functions
    functions -= {"lora_pro", "adadagrad"}  # which take pairs of factors, and a variance
    shown = {method.function or name for name, method in METHODS.items()}
    assert functions == shown - {"adamw"}, "see docs/figures/gallery_methods.py"
    assert METHODS.keys() <= OPTIMIZERS.keys()


def test_how_to_choose_names_every_method():
    page = (ROOT / "docs" / "guides" / "choosing.md").read_text()
    names = {method.function or name for name, method in METHODS.items()} - {"adamw"}
    assert not [name for name in sorted(names) if f"`{name}`" not in page]


@pytest.mark.parametrize("name", METHODS)
def test_state_formula(name):
    method = METHODS[name]
    a, b, r = 10, 13, 3
    expected = gallery.element_count(method.state, a, b, method.options.get("rank") or r)
    if expected is None:
        pytest.skip(f"{method.state!r} is in words")
    for shape in ((a, b),) if method.oriented else ((a, b), (b, a)):
        params = {"w": jax.ShapeDtypeStruct(shape, jnp.float32)}
        table = fira_jax.describe(method.transformation(r), params)
        assert table.rows[0].state_bytes == 4 * expected, shape


def test_formulas_are_read_as_people_read_them():
    assert gallery.element_count("ar + 2br + 1", 3, 5, 2) == 27
    assert gallery.element_count("rab", 3, 5, 2) == 30
    assert gallery.element_count("0", 3, 5, 2) == 0
    assert gallery.element_count("ar in 4 bits", 3, 5, 2) is None


def test_the_page_is_up_to_date():
    page = gallery.PAGE.read_text()
    results = json.loads(gallery.RESULTS.read_text())
    assert gallery.with_cards(page, results) == page, "run docs/figures/gallery.py"
    for name in ("gradient", *METHODS):
        assert (gallery.PICTURES / f"{name}.png").stat().st_size > 500


def test_pictures_show_what_moves():
    """Above the line only, for a method with nothing but the leading subspace."""
    left = gallery.gradients()[1]
    inside = left[:, : gallery.RANK].T @ gallery.last_update(METHODS["galore"])
    everything = left.T @ gallery.last_update(METHODS["galore"])
    assert (inside**2).sum() > 0.99 * (everything**2).sum()

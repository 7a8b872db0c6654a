"""How to say which axes are a matrix, and what is said back when it is said wrongly."""

import jax
import jax.numpy as jnp
import optax
import pytest
from optax.contrib import MuonDimensionNumbers

import fira_jax


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


ATTENTION = {
    "query": {"kernel": array(32, 4, 8), "bias": array(4, 8)},
    "out": {"kernel": array(4, 8, 32), "bias": array(32)},
}
SCANNED = jax.tree.map(lambda x: array(3, *x.shape), ATTENTION)
HEADS = {"query/kernel$": (-3, (-2, -1)), "out/kernel$": ((-3, -2), -1)}


def matrices(params, numbers, rank=4):
    """The shape of the matrices of every parameter that is projected."""
    tx = fira_jax.galore(1e-2, rank=rank, weight_dimension_numbers=numbers)
    rows = fira_jax.describe(tx, params).rows
    return {row.path: (row.view.batch_shape, row.view.matrix_shape) for row in rows if row.view}


@pytest.mark.parametrize(("params", "stack"), [(ATTENTION, ()), (SCANNED, (3,))])
def test_patterns_with_axes_of_their_own_from_the_end(params, stack):
    expected = {"query/kernel": (stack, (32, 32)), "out/kernel": (stack, (32, 32))}
    assert matrices(params, fira_jax.match_paths(HEADS)) == expected


def test_the_first_pattern_found_decides_and_none_leaves_alone():
    choose = fira_jax.match_paths({"query": None, "kernel": ((0, 1), 2)})
    assert matrices(ATTENTION, choose) == {"out/kernel": ((), (32, 32))}
    with_all = HEADS | {"bias$": (-2, -1)}
    assert matrices(ATTENTION, fira_jax.match_paths(with_all)).keys() == {
        "query/bias",
        "query/kernel",
        "out/kernel",
    }


def test_a_pattern_that_takes_nothing_is_misspelt():
    with pytest.raises(ValueError, match=r"include=\['qurey'\].*the paths are: out/bias, out/ker"):
        fira_jax.match_paths({"qurey": (0, (1, 2)), "out/kernel": ((0, 1), 2)})(ATTENTION)
    with pytest.raises(ValueError, match=r"include=\['bias'\].*as many dimensions as it needs"):
        fira_jax.match_paths({"bias": (0, (1, 2)), "kernel": (0, (1, 2))})(ATTENTION)
    # What another transformation takes care of is there all the same.
    elsewhere = ATTENTION | {"query": {"kernel": optax.MaskedNode(), "bias": optax.MaskedNode()}}
    assert fira_jax.match_paths(HEADS)(elsewhere)["query"]["kernel"] is None


@pytest.mark.parametrize("numbers", ["rows", 3, (0, True), (0, ()), ([0], 1)])
def test_a_pattern_needs_axes(numbers):
    with pytest.raises(ValueError, match=r"expected dimension numbers .* for pattern 'kernel'"):
        fira_jax.match_paths({"kernel": numbers})


def test_a_plain_pair_is_as_good_as_named_fields():
    params = {"w": array(8, 16), "layers": [array(3, 8, 16), array(16)]}
    for pair in ((-2, -1), (0, 1), (-1, (-2,))):
        named = MuonDimensionNumbers(*pair)
        assert matrices(params, pair) == matrices(params, named)
    per_leaf = {"w": (0, 1), "layers": [(1, 2), None]}
    assert matrices(params, per_leaf) == {"w": ((), (8, 16)), "layers/0": ((3,), (8, 16))}
    with pytest.raises(ValueError, match=r"'w' .* name an axis outside its 2 dimensions"):
        matrices(params, {"w": (0, 2), "layers": None})


def test_numbers_over_several_parameters_serve_those_that_have_the_axes():
    numbers = {"query": (0, (1, 2)), "out": ((0, 1), 2)}
    assert matrices(ATTENTION, numbers).keys() == {"query/kernel", "out/kernel"}
    with pytest.raises(ValueError, match=r"\(0, 3\) at 'query'.*no parameter below .* query/kern"):
        matrices(ATTENTION, {"query": (0, 3), "out": None})


@pytest.mark.parametrize(
    ("numbers", "where", "near"),
    [
        ({"query": None, "out": None, "qurey": (0, (1, 2))}, "qurey", "query"),
        (
            {"query": {"kernel": (0, (1, 2)), "bias": None, "kernal": (0, 1)}, "out": None},
            "query/kernal",
            "query/kernel",
        ),
        (
            {"query": {"kernel": [0, 1], "bias": None}, "out": None},
            "query/kernel/0",
            "query/kernel",
        ),
    ],
)
def test_numbers_where_no_parameter_is(numbers, where, near):
    with pytest.raises(ValueError, match=f"entry at '{where}', where no .* did you mean '{near}'"):
        matrices(ATTENTION, numbers)


def test_paths_that_are_written_alike_are_told_apart():
    params = {"a/b": array(8, 16), "a": {"b": array(16, 8)}}
    numbers = {"a/b": (0, 1), "a": {"b": None}}
    leaves = fira_jax.LowRank(4, weight_dimension_numbers=numbers).leaves(params)
    assert [(leaf.shape, leaf.view is not None) for leaf in leaves] == [
        ((16, 8), False),
        ((8, 16), True),
    ]


@pytest.mark.parametrize("choose", [fira_jax.match_paths("kernel"), fira_jax.match_modules()])
def test_a_choice_taken_for_a_schedule_says_so(choose):
    make = optax.inject_hyperparams(fira_jax.galore, static_args=("rank", "update_proj_gap"))
    params = {"kernel": jnp.ones((8, 16))}
    with pytest.raises(TypeError, match=r"static_args=.*'weight_dimension_numbers'"):
        make(1e-2, rank=2, weight_dimension_numbers=choose).init(params)

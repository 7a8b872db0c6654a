"""Every mistake is named before anything is compiled: the argument, or the leaf and its shape."""

from __future__ import annotations

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import GaLoreDimensionNumbers, MuonDimensionNumbers

import fira_jax
from fira_jax import LowRank

MATRIX = {"layers": [{"q": jnp.ones((4, 6))}]}
PATH = "'layers/0/q'"


def with_numbers(numbers) -> LowRank:
    return LowRank(2, weight_dimension_numbers=numbers)


# --- arguments --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rank", "update_proj_gap"])
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0, ValueError, "at least 1, got 0"),
        (-3, ValueError, "at least 1, got -3"),
        (2.0, TypeError, "an int, got 2.0"),
        ("8", TypeError, "an int, got '8'"),
        (True, TypeError, "an int, got True"),
        (None, TypeError, "an int, got None"),
        (np.array([4]), TypeError, "an int, got array"),
        (jnp.array(4), TypeError, "a static int, got a JAX array.*static_args"),
    ],
)
def test_rank_and_gap_are_positive_static_integers(name, value, error, message):
    with pytest.raises(error, match=f"{name} must be {message}"):
        LowRank(**{name: value})
    for method in (fira_jax.fira, fira_jax.galore):
        with pytest.raises(error, match=f"{name} must be"):
            method(0.1, **{name: value})


def test_numpy_integers_are_integers():
    assert LowRank(np.int64(4), np.int32(2)).rank == 4


@pytest.mark.parametrize(
    ("name", "value", "choices"),
    [
        ("side", "left", "'short', 'long'"),
        ("moments", "forget", "'keep', 'carry', 'reset'"),
        ("basis", "qr", "'svd', 'randomized', 'random', 'dct'"),
        ("refresh", "never", "'fixed', 'staggered'"),
        ("form", "v2", "'released', 'paper'"),
        ("granularity", "row", "'column', 'matrix'"),
    ],
)
def test_unknown_names_list_the_known_ones(name, value, choices):
    with pytest.raises(ValueError, match=f"{name} must be .*{choices}.*got '{value}'"):
        fira_jax.fira(0.1, **{name: value})


def test_objects_of_the_wrong_kind():
    with pytest.raises(TypeError, match=r"basis must be a name or a fira_jax\.basis\.Basis object"):
        LowRank(basis=fira_jax.basis.Svd)  # the class, not an object
    with pytest.raises(TypeError, match="basis must be a name"):
        LowRank(basis=3)
    with pytest.raises(TypeError, match=r"refresh must be a name, a callable or .*Rule, got 3"):
        LowRank(refresh=3)
    with pytest.raises(
        ValueError, match="bias_correction must be one of 'outside', 'inside', 'none'"
    ):
        fira_jax.scale_by_adam_in_subspace(LowRank(2), bias_correction=True)
    with pytest.raises(ValueError, match="oversample must not be negative, got -1"):
        fira_jax.basis.Randomized(oversample=-1)
    with pytest.raises(ValueError, match="power_iterations must not be negative, got -2"):
        fira_jax.basis.Randomized(power_iterations=-2)


def test_moments_are_carried_between_orthonormal_bases_only():
    with pytest.raises(ValueError, match=r"moments='carry' needs .*orthonormal.*got basis=Random"):
        LowRank(2, basis="random", moments="carry")


@pytest.mark.parametrize("gamma", [0.99, 0, -1.0, float("nan"), np.float32(0.5)])
def test_limiter_must_let_the_norm_stay(gamma):
    with pytest.raises(ValueError, match=f"gamma must be at least 1, got {gamma}"):
        fira_jax.fira(0.1, gamma=gamma)


@pytest.mark.parametrize("name", ["basis_dtype", "mu_dtype", "nu_dtype"])
@pytest.mark.parametrize("dtype", [jnp.int8, jnp.complex64, bool])
def test_dtypes_of_the_state_are_floating_point(name, dtype):
    with pytest.raises(
        ValueError, match=f"{name} must be a floating-point dtype, got {np.dtype(dtype)}"
    ):
        fira_jax.fira(0.1, **{name: dtype})


# --- parameters -------------------------------------------------------------------------------

PIECES = {
    "project": fira_jax.low_rank_project,
    "adam": fira_jax.scale_by_adam_in_subspace,
    "in_subspace": lambda low_rank: fira_jax.in_subspace(low_rank, optax.identity()),
    "limiter": fira_jax.norm_growth_limit,
}


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (MuonDimensionNumbers(0, 2), "=0, output_axis=2.* name an axis outside its 2 dimensions"),
        (MuonDimensionNumbers(-3, 1), "outside its 2 dimensions"),
        (MuonDimensionNumbers(0, 0), "name an axis twice"),
        (MuonDimensionNumbers(0, -2), "name an axis twice"),
        (MuonDimensionNumbers((0, 0), 1), "name an axis twice"),
        (MuonDimensionNumbers((), 1), "at least one reduction and one output axis"),
        (MuonDimensionNumbers(0, ()), "at least one reduction and one output axis"),
        (GaLoreDimensionNumbers(1, 1), "name an axis twice"),
        ("rows", "expected dimension numbers .*or None, got 'rows'"),
        (True, "expected dimension numbers .*or None, got True"),
    ],
)
def test_dimension_numbers_must_fit(piece, numbers, message):
    tx = PIECES[piece](with_numbers({"layers": [{"q": numbers}]}))
    where = re.escape(f"parameter {PATH} with shape (4, 6): ")
    with pytest.raises(ValueError, match=f"{where}.*{message}"):
        tx.init(MATRIX)


def test_missing_entry_of_the_tree_of_dimension_numbers():
    with pytest.raises(ValueError, match=r"no entry for parameter 'layers/0/q'; use None"):
        fira_jax.low_rank_project(with_numbers({"head": None})).init(MATRIX)


def test_match_paths_that_match_nothing():
    match = fira_jax.match_paths(include=("atn", "mpl"), exclude="head")
    with pytest.raises(ValueError, match=r"\['atn', 'mpl'\].*\['head'\].*paths are: layers/0/q"):
        fira_jax.fira(0.1, 2, weight_dimension_numbers=match).init(MATRIX)
    with pytest.raises(ValueError, match="matches no parameter of two or more dimensions"):
        fira_jax.match_paths()({"b": jnp.ones(3)})


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8, jnp.bool_, jnp.complex64])
@pytest.mark.parametrize("shape", [(4, 6), (3,), ()])
@pytest.mark.parametrize("piece", PIECES)
def test_parameters_are_real_floating_point(piece, dtype, shape):
    params = {**MATRIX, "step": jnp.zeros(shape, dtype)}
    with pytest.raises(ValueError) as error:  # noqa: PT011
        PIECES[piece](LowRank(2)).init(params)
    for part in ("'step'", str(shape), str(jnp.dtype(dtype)), "expected a real floating-point"):
        assert part in str(error.value)


@pytest.mark.parametrize("leaf", [1.0, "weights", object()])
def test_parameters_are_arrays(leaf):
    with pytest.raises(ValueError, match=r"parameter 'scale' is not an array: "):
        fira_jax.fira(0.1, 2).init({**MATRIX, "scale": leaf})


@pytest.mark.parametrize("method", [fira_jax.fira, fira_jax.galore])
def test_update_needs_the_tree_of_init(method):
    tx = method(0.1, 2)
    state = tx.init(MATRIX)
    with pytest.raises(ValueError, match=r"updates have 2 leaves .* initialized for 1"):
        tx.update({"a": jnp.ones((4, 6)), "b": jnp.ones(3)}, state)


@pytest.mark.parametrize("basis", ["svd", "random"])
@pytest.mark.parametrize("shape", [(4, 5), (1, 6), (2, 4, 6), (6,), ()])
def test_update_needs_the_shapes_of_init(basis, shape):
    tx = fira_jax.fira(0.1, 2, basis=basis)
    state = tx.init(MATRIX)
    message = re.escape(f"shape {shape} needs an optimizer state of shape")
    with pytest.raises(ValueError, match=f"{message}.*need the same tree of parameters"):
        tx.update({"layers": [{"q": jnp.ones(shape)}]}, state)


# --- warnings ---------------------------------------------------------------------------------


def test_tree_without_matrices_is_adam_with_a_warning():
    with pytest.warns(UserWarning, match=r"none of the 2 parameters is a matrix.*'a'.*\(3,\)") as w:
        fira_jax.fira(0.1, 2).init({"a": jnp.ones(3), "b": jnp.ones(())})
    assert len(w) == 1


def test_no_warning_where_something_is_projected_or_nothing_is_there():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fira_jax.fira(0.1, 2).init({**MATRIX, "b": jnp.ones(3)})
        fira_jax.fira(0.1, 2).init({})


def test_a_chain_without_its_end_or_its_beginning_names_the_missing_piece():
    params = {"layer": {"w": jnp.ones((8, 16))}}
    low_rank = LowRank(rank=2)
    endless = optax.chain(
        fira_jax.low_rank_project(low_rank),
        fira_jax.scale_by_adam_in_subspace(low_rank),
        optax.scale_by_learning_rate(1e-2),
    )
    updates, _ = endless.update(params, endless.init(params), params)
    message = r"update of shape \(8, 16\) is still in its subspace.*put fira_jax.project_back\(\)"
    with pytest.raises(TypeError, match=message):
        optax.apply_updates(params, updates)
    headless = fira_jax.scale_by_adam_in_subspace(low_rank)
    with pytest.raises(ValueError, match=r"put fira_jax.low_rank_project\(low_rank\) in front"):
        headless.update(params, headless.init(params), params)


def walk_with(foreign, place):
    """A walk with something foreign in its midst, and parameters for it."""
    low_rank = LowRank(rank=2)
    pieces = [
        fira_jax.low_rank_project(low_rank),
        fira_jax.scale_by_adam_in_subspace(low_rank),
        fira_jax.project_back(),
    ]
    params = {"w": jnp.ones((8, 16)), "b": jnp.ones(16)}
    return optax.chain(*pieces[:place], foreign, *pieces[place:]), params


@pytest.mark.parametrize(
    "takes_arrays",
    [
        optax.scale(0.5),
        optax.scale_by_learning_rate(0.1),
        optax.clip(1.0),
        optax.centralize(),
        optax.normalize_by_update_norm(),
        optax.clip_by_block_rms(1.0),
        optax.masked(optax.scale(0.5), {"w": True, "b": False}),
    ],
    ids=["scale", "rate", "clip", "centralize", "normalize", "block_rms", "masked"],
)
@pytest.mark.parametrize("place", [1, 2])
def test_what_computes_with_the_inside_of_a_node_is_told_where_it_belongs(takes_arrays, place):
    tx, params = walk_with(takes_arrays, place)
    for update in (tx.update, jax.jit(tx.update)):
        with pytest.raises(TypeError, match=r"shape \(8, 16\) is still in its subspace.*behind it"):
            update(params, tx.init(params), params)


@pytest.mark.parametrize(
    "with_a_state",
    [
        optax.scale_by_adam(),
        optax.trace(0.9),
        optax.ema(0.9),
        optax.scale_by_lion(),
        optax.add_decayed_weights(0.1),
        optax.scale_by_trust_ratio(),
    ],
    ids=["adam", "trace", "ema", "lion", "decay", "trust_ratio"],
)
@pytest.mark.parametrize("place", [1, 2])
def test_what_compares_the_tree_with_its_states_is_told_too(with_a_state, place):
    """The error is JAX's; the name it prints for a node says where such a thing belongs."""
    tx, params = walk_with(with_a_state, place)
    names_the_parameter = jax.__version_info__ >= (0, 10)  # as 0.8 does not
    where = r"'w'(.|\n)*" if names_the_parameter else ""
    with pytest.raises(ValueError, match=where + r"still in its subspace.*behind it.*in_subspace"):
        tx.update(params, tx.init(params), params)


def test_a_state_of_another_rank_is_named():
    params = {"w": jnp.ones((8, 16))}
    small, large = (fira_jax.fira(1e-2, rank=rank) for rank in (2, 4))
    with pytest.raises(
        ValueError, match=r"'w' with shape \(8, 16\).*\(8, 2\).*\(8, 4\).*the same rank"
    ):
        small.update(params, large.init(params), params)

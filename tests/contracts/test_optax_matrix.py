"""Optax's own tests for contributed optimizers, which ship inside its wheel, run over ours."""

import functools
import importlib.util
import inspect
from unittest import mock

import pytest
from absl.testing import parameterized

import fira_jax
from fira_jax.basis import Adaptive, PowerIteration, Svd

pytestmark = pytest.mark.filterwarnings("ignore:none of the .* parameters is a matrix:UserWarning")

# Of the others, those whose state is of another kind; test-slow has the rest.
ALWAYS = ("fira", "galore", "apollo", "sinkgd", "trion", "adarankgrad")
METHODS = ("fira", "galore")
CASES = [
    {
        "opt_name": method,
        "opt_kwargs": {"learning_rate": 1e-2, "rank": 8, "basis": basis},
        "wrapper_name": None,
        "wrapper_kwargs": None,
    }
    for method in METHODS
    for basis in ("randomized", "svd")
]
# SWAN as published never moves a column's mean, so it cannot reach any matrix that is asked for.
WITHOUT_A_SUBSPACE = {
    "swan": {"standardized": False},
    "sinkgd": {},
    "scale": {"scale": 0.05, "last_layer": None},
    "m_fac": {"rank": 8, "damping": 1.0},
}
OTHER_SUBSPACES = {
    "lotus": {"rank": 8, "basis": "svd"},
    "adarankgrad": {"rank": 8, "basis": Adaptive(of=Svd())},
    "ldadam": {"rank": 8, "basis": PowerIteration(start=Svd())},
    "subtrack": {"rank": 8},
    "q_galore": {"rank": 8, "basis": "svd"},
}
OTHER_RESIDUALS = {
    "apollo": {"rank": 8},
    "apollo_mini": {},
    "frugal": {"rank": 8},
    "gwt": {"rank": 8},
    "dct_adamw": {"rank": 8},
    "trion": {"rank": 8},
    "vlorp": {"rank": 8},
    "alice": {"rank": 8},
    "racs": {},
    "gradnormlorp": {"rank": 8},
}
CASES += [
    {
        "opt_name": method,
        "opt_kwargs": {"learning_rate": 1e-2, **options},
        "wrapper_name": None,
        "wrapper_kwargs": None,
    }
    for method, options in (WITHOUT_A_SUBSPACE | OTHER_SUBSPACES | OTHER_RESIDUALS).items()
]


def factory(name):
    """A method whose signature shows types, not their names, where Optax looks for schedules."""
    method = getattr(fira_jax, name)

    @functools.wraps(method)
    def build(*args, **kwargs):
        return method(*args, **kwargs)

    build.__signature__ = inspect.signature(method, eval_str=True)
    return build


def contributed_tests_on(cases):
    """Optax's tests, their lists of optimizers replaced by ``cases`` as they are expanded."""
    spec = importlib.util.find_spec("optax.contrib._common_test")
    module = importlib.util.module_from_spec(spec)
    product = parameterized.product

    def product_of_ours(theirs, **axes):
        assert all("opt_name" in case for case in theirs)
        return product(cases, **axes)

    with mock.patch.object(parameterized, "product", product_of_ours):
        spec.loader.exec_module(module)
    module._get_opt_factory = factory
    return module.ContribTest


Always = contributed_tests_on([case for case in CASES if case["opt_name"] in ALWAYS])
Family = pytest.mark.slow(
    contributed_tests_on([case for case in CASES if case["opt_name"] not in ALWAYS])
)


def test_the_matrix_is_complete():
    """Seven kinds of test; a renamed one, or one without our cases, would go unnoticed."""
    names = [name for tests in (Always, Family) for name in dir(tests) if name.startswith("test")]
    kinds = {name.rstrip("0123456789") for name in names}
    assert len(kinds) >= 7, kinds
    assert len(names) == len(CASES) * (2 + 4 + 1 + 2 + 2 + 4 + 1)

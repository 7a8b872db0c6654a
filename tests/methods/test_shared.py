"""What all methods share: how their docstrings are completed, and the names that arguments had."""

import inspect

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import normal

import fira_jax
from fira_jax.methods.shared import ARGUMENTS, formerly, shared_arguments

METHODS = {
    name: value
    for name, value in vars(fira_jax).items()
    if inspect.isfunction(value) and "learning_rate" in inspect.signature(value).parameters
}
ELSEWHERE = ["swan", "sinkgd", "racs", "scale_optimizer", "trion"]


@pytest.mark.parametrize("name", METHODS)
def test_every_argument_is_described_once_and_in_order(name):
    documentation = inspect.getdoc(METHODS[name])
    _, _, section = documentation.partition("\nArgs:\n")
    section, _, _ = section.partition("\n\n")
    lines = section.splitlines()
    described = [x.strip().partition(":")[0] for x in lines if x[2] != " "]
    assert described == list(inspect.signature(METHODS[name]).parameters)
    assert max(map(len, lines)) <= 100


def test_what_a_method_says_itself_wins():
    @shared_arguments
    def method(rank, gamma):
        r"""Does something.

        Args:
          gamma: how
            fast, :math:`\gamma`.

        Example:
          >>> 1
          1
        """

    assert method.__doc__ == (
        f"Does something.\n\nArgs:\n  rank: {ARGUMENTS['rank']}\n"
        "  gamma: how\n    fast, :math:`\\gamma`.\n\nExample:\n  >>> 1\n  1"
    )


def test_an_argument_that_nobody_describes_is_refused():
    def method(rank, unheard_of):
        """Does something.

        Example:
          >>> 1
          1
        """

    with pytest.raises(TypeError, match=r"method must describe \['unheard_of'\]"):
        shared_arguments(method)

    def other(rank):
        """Does something.

        Args:
          gamma: not there.

        Example:
          >>> 1
          1
        """

    with pytest.raises(TypeError, match="nothing that it does not take"):
        shared_arguments(other)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_the_optimizer_of_other_parameters_may_still_be_called_base_optimizer(name):
    method, params = METHODS[name], {"head": jnp.ones((6, 8)), "b": jnp.ones(8)}
    grads = {"head": jnp.asarray(normal(0, 6, 8)), "b": jnp.asarray(normal(1, 8))}

    def update(tx):
        return tx.update(grads, tx.init(params), params)[0]

    expected = update(method(0.1, elsewhere=optax.scale_by_sign()))
    np.testing.assert_allclose(expected["b"], -0.1 * np.sign(grads["b"]), rtol=1e-6)
    with pytest.warns(DeprecationWarning, match=f"{name}'s argument base_optimizer is now else"):
        tx = method(0.1, base_optimizer=optax.scale_by_sign())
    np.testing.assert_array_equal(update(tx)["head"], expected["head"])
    np.testing.assert_array_equal(update(tx)["b"], expected["b"])


def test_both_names_at_once_are_refused():
    with pytest.raises(TypeError, match="both new and old"):
        formerly("old", "new")(lambda new: new)(old=1, new=2)

"""A slice of the vocabulary at a time gives the loss and the gradients of all of it."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import normal

import fira_jax


def dense(x: jax.Array, head: jax.Array, targets: jax.Array) -> jax.Array:
    return -jnp.take_along_axis(jax.nn.log_softmax(x @ head), targets[..., None], -1)[..., 0]


@pytest.mark.parametrize("chunk_size", [1, 4, 13, 64], ids=lambda n: f"{n} of 13 columns")
def test_losses_and_gradients_are_those_of_the_dense_head(chunk_size):
    with jax.enable_x64(True):
        x, head = normal(0, 2, 3, 5, dtype=np.float64), 30 * normal(1, 5, 13, dtype=np.float64)
        targets = np.array([[0, 12, 3], [8, 9, 12]])
        weights = normal(2, 2, 3, dtype=np.float64)

        def weighted(f):
            return jax.jit(jax.value_and_grad(lambda x, h: jnp.sum(weights * f(x, h)), (0, 1)))

        ours = weighted(lambda x, h: fira_jax.chunked_cross_entropy(x, h, targets, chunk_size))(
            x, head
        )
        theirs = weighted(lambda x, h: dense(x, h, targets))(x, head)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_bfloat16_inputs_give_float32_losses():
    x, head = (jnp.asarray(normal(i, 8, 8), jnp.bfloat16) for i in range(2))
    losses = fira_jax.chunked_cross_entropy(x, head, jnp.arange(8), 3)
    assert losses.dtype == jnp.float32
    wide = dense(x.astype(jnp.float32), head.astype(jnp.float32), jnp.arange(8))
    np.testing.assert_allclose(losses, wide, rtol=1e-5)
    grads = jax.grad(lambda h: fira_jax.chunked_cross_entropy(x, h, jnp.arange(8), 3).sum())(head)
    assert grads.dtype == jnp.bfloat16


def test_the_logits_never_exist_as_a_whole():
    tokens, width, vocabulary = 24, 8, 1000

    def program(f):
        def total(x, head, targets):
            return jnp.sum(f(x, head, targets))

        shapes = [(tokens, width), (width, vocabulary)]
        args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
        targets = jax.ShapeDtypeStruct((tokens,), jnp.int32)
        return jax.jit(jax.grad(total, (0, 1))).lower(*args, targets).as_text()

    logits = re.compile(rf"{tokens}x{vocabulary}x")
    assert logits.search(program(dense))
    assert not logits.search(
        program(lambda x, head, targets: fira_jax.chunked_cross_entropy(x, head, targets, 100))
    )


@pytest.mark.parametrize(
    ("x", "head", "targets"), [((2, 3), (4, 5), (2,)), ((2, 3), (3, 5), (3,)), ((2, 3), (3,), (2,))]
)
def test_shapes_that_do_not_fit_are_named(x, head, targets):
    with pytest.raises(ValueError, match=re.escape(f"got shapes {x}, {head} and {targets}")):
        fira_jax.chunked_cross_entropy(jnp.ones(x), jnp.ones(head), jnp.ones(targets, int))


def test_a_chunk_size_below_one_is_refused():
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        fira_jax.chunked_cross_entropy(jnp.ones((2, 3)), jnp.ones((3, 5)), jnp.ones(2, int), 0)

"""What a choice that saves nothing is answered with, once and where it was made."""

import warnings

import jax
import jax.numpy as jnp
import optax
import pytest

import fira_jax

LAYERS, WIDTH, HEADS, SIZE = 4, 128, 8, 16


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


SCANNED = {
    "query": {"kernel": array(LAYERS, WIDTH, HEADS, SIZE), "bias": array(LAYERS, HEADS, SIZE)},
    "up": {"kernel": array(LAYERS, WIDTH, 4 * WIDTH), "bias": array(LAYERS, 4 * WIDTH)},
    "norm": {"scale": array(LAYERS, WIDTH)},
}


def test_stacked_layers_of_which_only_biases_are_projected():
    with pytest.warns(UserWarning, match="% of Adam's") as caught:
        fira_jax.fira(1e-2, rank=2).init(SCANNED)
    assert len(caught) == 1
    message = str(caught[0].message)
    assert message.startswith("the optimizer's state is 100% of Adam's (not projected, though")
    assert "'up/kernel' (4, 128, 512), 'query/kernel' (4, 128, 8, 16)" in message
    assert "fira_jax.match_modules()" in message
    assert caught[0].filename == __file__


def test_the_cure_that_is_named_helps():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        numbers = fira_jax.match_modules()
        table = fira_jax.describe(
            fira_jax.fira(1e-2, rank=16, weight_dimension_numbers=numbers), SCANNED
        )
    assert table.state_bytes < 0.4 * table.adam_bytes


@pytest.mark.parametrize(
    ("method", "rank", "warns"),
    [("fira", 512, True), ("fira", 352, True), ("fira", 256, False), ("apollo", 500, False)],
)
def test_a_rank_of_the_whole_matrix(method, rank, warns):
    tx = getattr(fira_jax, method)(1e-2, rank=rank)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tx.init({"w": array(512, 512)})
    texts = [str(x.message) for x in caught]
    assert bool(texts) == warns, texts
    assert all("at the rank of the whole matrix or nearly: 'w' (512, 512)" in x for x in texts)


def test_deliberate_choices_and_small_trees_are_no_news():
    tree = {"embedding": array(4096, 64), "attn": array(64, 64)}
    choose = fira_jax.match_paths("attn")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fira_jax.fira(1e-2, rank=8, weight_dimension_numbers=choose).init(tree)
        fira_jax.fira(1e-2).init({"w": array(64, 32)})  # 125 %, of 16 KiB


def test_nothing_projected_is_said_at_the_call():
    with pytest.warns(UserWarning, match="none of the 1 parameters is a matrix") as caught:
        optax.chain(fira_jax.fira(1e-2), optax.identity()).init({"b": array(8)})
    assert caught[0].filename == __file__


def test_describe_marks_what_is_projected_in_vain():
    tree = {"good": array(64, 256), "tiny": array(64, 4, 8), "bias": array(8)}
    numbers = optax.contrib.MuonDimensionNumbers(-2, -1)
    table = fira_jax.describe(fira_jax.fira(1e-2, 4, weight_dimension_numbers=numbers), tree)
    marked = [line for line in str(table).splitlines() if line.endswith("not below Adam's")]
    assert [line.split()[0] for line in marked] == ["tiny"]
    assert [row.path for row in table.rows if row.saves] == ["good"]

"""A product in blocks of columns is the product, and only a TPU takes it so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import normal

from fira_jax.basis.products import COLUMNS, in_blocks, product


@pytest.mark.parametrize("columns", [2 * COLUMNS, 2 * COLUMNS + 9])
def test_blocks_make_the_product(columns):
    x, y = normal(0, 40, 24), normal(1, 24, columns)
    np.testing.assert_allclose(in_blocks(jnp.array(x), jnp.array(y)), x @ y, atol=1e-5)
    np.testing.assert_allclose(product(jnp.array(x), jnp.array(y)), x @ y, atol=1e-5)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
@pytest.mark.parametrize("columns", [COLUMNS + 16, 2 * COLUMNS])
def test_only_a_tpu_has_blocks_and_only_of_many_columns(platform, columns):
    x, y = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in [(40, 24), (24, columns)])
    program = jax.jit(product).trace(x, y).lower(lowering_platforms=(platform,)).as_text()
    in_parts = platform == "tpu" and columns == 2 * COLUMNS
    assert ("stablehlo.while" in program) == in_parts
    assert program.count("dot_general") == 1

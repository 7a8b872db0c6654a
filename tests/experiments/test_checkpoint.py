"""Checkpoints give back exactly what was saved, and only what was saved completely."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.training.checkpoint import CheckpointError, Checkpoints

NOTE = {"seconds": 0.0, "data": None}


def state(value: float):
    """All that optimizer states are made of: named tuples, empty nodes, scalars, bfloat16."""
    params = {"w": jnp.full((64, 32), value, jnp.bfloat16), "norm": jnp.full((3,), value)}
    return {
        "params": params,
        "opt_state": optax.chain(
            optax.masked(optax.scale_by_adam(), {"w": True, "norm": False}), optax.scale(0.1)
        ).init(params),
        "step": jnp.int32(value),
    }


ABSTRACT = jax.eval_shape(lambda: state(0.0))


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_restores_state_and_note(tmp_path):
    saved = state(7.0)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest_step == 0
    assert checkpoints.restore(ABSTRACT) is None
    checkpoints.save(5, saved, {"seconds": 1.5, "data": {"next": [1, None]}})
    checkpoints.close()

    again = Checkpoints(tmp_path)
    assert again.latest_step == 5
    step, restored, note = again.restore(ABSTRACT)
    assert_same(restored, saved)
    assert (step, note) == (5, {"seconds": 1.5, "data": {"next": [1, None]}})
    assert again.note() == note
    again.close()


def test_keeps_the_newest_two(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in range(1, 5):
        checkpoints.save(step, state(step), NOTE)
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4"]


# A kill may come while the arrays are written, or between the last file and the final rename.
@pytest.mark.parametrize("missing", [["state", "commit_success.txt"], []])
def test_ignores_a_half_written_checkpoint(tmp_path, missing):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1.0), NOTE)
    checkpoints.close()
    unfinished = tmp_path / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "1", unfinished)
    for name in missing:
        remove(unfinished / name)

    again = Checkpoints(tmp_path)
    assert again.latest_step == 1
    again.save(2, state(2.0), NOTE)
    again.close()
    assert not unfinished.exists()
    assert_same(Checkpoints(tmp_path).restore(ABSTRACT)[1], state(2.0))


@pytest.mark.parametrize("lost", ["_CHECKPOINT_METADATA", "state"])
def test_survives_a_half_deleted_old_checkpoint(tmp_path, lost):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, state(float(step)), NOTE)
    checkpoints.close()
    remove(tmp_path / "1" / lost)

    again = Checkpoints(tmp_path)
    assert_same(again.restore(ABSTRACT)[1], state(2.0))
    again.save(3, state(3.0), NOTE)
    again.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]


def test_refuses_another_shape(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1.0), NOTE)
    checkpoints.close()
    other = {**ABSTRACT, "step": jax.ShapeDtypeStruct((2,), jnp.int32)}
    with pytest.raises(CheckpointError, match=r"(?s)step.*\[\]\] there, .*\[2\]\] now"):
        Checkpoints(tmp_path).restore(other)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()

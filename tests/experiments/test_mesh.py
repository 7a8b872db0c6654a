"""A run on many devices, in several processes, is the run on one device."""

import os
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from experiments import mesh
from experiments.llama.model import LlamaConfig
from experiments.text.packing import Windows
from experiments.training import config
from experiments.training import pretraining as train
from experiments.training.metrics import read_metrics
from experiments.training.optimizers import build_optimizer
from experiments.training.step import make_init, make_state_shardings
from tests.experiments.tiny_run import write_inputs
from tests.xla_flags import xla_flags

DEVICES = (
    "--xla_force_host_platform_device_count={} "
    "--xla_cpu_enable_concurrency_optimized_scheduler=false"
)


@pytest.mark.parametrize("text", ["", "8", "fsdp=two", "rows=1", "fsdp=0", "fsdp=1=1"])
def test_a_mesh_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="data=2,fsdp=4"):
        mesh.make_mesh(text)


def test_a_mesh_of_other_devices_is_refused():
    with pytest.raises(ValueError, match="has 64 devices, but there are"):
        mesh.make_mesh("fsdp=16,tensor=4")


def test_unnamed_axes_have_size_one():
    found = mesh.make_mesh(f"fsdp={jax.device_count()}")
    assert dict(found.shape) == {"data": 1, "fsdp": jax.device_count(), "tensor": 1}


@pytest.mark.parametrize("text", ["localhost", "localhost:1,2", "localhost:1,two,0"])
def test_an_address_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="HOST:PORT,COUNT,INDEX"):
        mesh.join(text)


def test_processes_need_a_mesh():
    with pytest.raises(ValueError, match="needs a mesh"):
        config.parse(["--distributed=auto"])


def test_weights_and_state_are_spread():
    model = LlamaConfig(258, 32, 64, 2, 2, 16)
    run = config.PretrainConfig(rank=4, steps=10, warmup_steps=1)
    optimizer = build_optimizer(run, lambda _: 1e-2)
    state = jax.eval_shape(make_init(model, optimizer, seed=0)[1])
    shardings = make_state_shardings(AbstractMesh((2, 4, 2), mesh.AXES), optimizer, state)
    layers = shardings.params["layers"]
    assert layers["attn"]["q"].spec == P(None, "fsdp", "tensor")
    assert layers["mlp"]["down"].spec == P(None, "tensor", "fsdp")
    assert shardings.params["embedding"].spec == P("tensor", "fsdp")
    assert layers["first_norm"]["scale"].spec == P()
    # Of 258 tokens a fourth is no whole number.
    assert mesh.param_shardings(AbstractMesh((1, 2, 4), mesh.AXES), state.params)[
        "embedding"
    ].spec == P(None, "fsdp")
    shares = zip(
        jax.tree.leaves(state.opt_state), jax.tree.leaves(shardings.opt_state), strict=True
    )
    held = sum(np.prod(s.shard_shape(x.shape)) for x, s in shares)
    total = sum(x.size for x in jax.tree.leaves(state.opt_state))
    assert held < 0.2 * total  # eight parts, the data axis having all of it twice


def test_without_a_mesh_nothing_is_asked():
    x = jnp.ones((4, 3))
    assert mesh.split_rows(x) is x
    assert mesh.put_batch(np.ones((3, 2)), None).shape == (3, 2)


def test_a_share_of_a_batch_lands_where_the_whole_would():
    everything = mesh.make_mesh(f"data={jax.device_count()}")
    rows = np.arange(24 * jax.device_count()).reshape(-1, 3)
    assert mesh.local_rows(everything, len(rows)) == slice(0, len(rows))  # all is here
    np.testing.assert_array_equal(
        mesh.put_batch(rows, everything, slice(0, len(rows)), len(rows)), rows
    )


def test_only_the_rows_of_the_share_are_read(monkeypatch):
    expected = next(iter(Windows(np.arange(1000), seq_len=4).batches(8, 0)))
    windows = Windows(np.arange(1000), seq_len=4)
    taken = []
    take = windows.take
    monkeypatch.setattr(
        windows, "take", lambda indices: taken.append(len(indices)) or take(indices)
    )
    share = windows.batches(8, 0, slice(2, 5))
    np.testing.assert_array_equal(next(iter(share)), expected[2:5])
    assert set(taken) == {3}


@pytest.mark.slow
def test_two_processes_of_four_devices_have_the_losses_of_one_device(tmp_path):
    flags = [*write_inputs(tmp_path), "--steps=20", "--eval-every=20", "--accumulate=2"]
    # Matrices of one shape only: their refresh is compiled once.
    model = tmp_path / "tiny.yaml"
    model.write_text(model.read_text().replace("intermediate_size: 64", "intermediate_size: 32"))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    many, one = tmp_path / "many", tmp_path / "one"
    command = [sys.executable, "-m", "experiments.pretrain", *flags, f"--output-dir={many}"]
    both = [
        subprocess.Popen(
            [*command, "--mesh=fsdp=4,tensor=2", f"--distributed={address},2,{index}"],
            env=os.environ | {"XLA_FLAGS": xla_flags(DEVICES.format(4)), "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    train.run(config.parse([*flags, f"--output-dir={one}"]))
    said = [process.communicate(timeout=500)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert "finished: validation loss" in said[0]
    assert "validation loss" not in said[1]  # one of them speaks

    logs = [read_metrics(folder / "metrics.jsonl") for folder in (many, one)]
    many_losses, losses = ([record["train_loss"] for record in log] for log in logs)
    assert len(losses) == 20
    np.testing.assert_allclose(many_losses, losses, rtol=1e-5)
    np.testing.assert_allclose(*(log[-1]["eval_loss"] for log in logs), rtol=1e-5)


@pytest.mark.slow
def test_one_of_two_processes_is_killed_and_the_run_goes_on(tmp_path):
    flags = [*write_inputs(tmp_path), "--steps=400", "--checkpoint-every=5", "--optimizer=adamw"]
    run = tmp_path / "run"

    def start(*more: str) -> list[subprocess.Popen]:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        command = [sys.executable, "-m", "experiments.pretrain", *flags, *more]
        return [
            subprocess.Popen(
                [
                    *command,
                    f"--output-dir={run}",
                    "--mesh=fsdp=4,tensor=2",
                    f"--distributed={address},2,{index}",
                ],
                env=os.environ
                | {"XLA_FLAGS": xla_flags(DEVICES.format(4)), "JAX_PLATFORMS": "cpu"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for index in range(2)
        ]

    first, second = start()
    end = time.monotonic() + 300
    while len(read_metrics(run / "metrics.jsonl")) < 12:
        assert time.monotonic() < end
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.01)
    second.kill()
    said, _ = first.communicate(timeout=120)
    second.communicate()
    assert first.returncode == 75, said
    assert "another process of this run is gone" in said
    reached = len(read_metrics(run / "metrics.jsonl"))
    assert 12 <= reached < 400
    both = start("--stop-after=30") if reached < 30 else start(f"--stop-after={reached + 5}")
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert "continuing after step" in said[0]


CHECKPOINT = """
import sys
from pathlib import Path
import jax, numpy as np
from experiments import mesh
from experiments.llama.model import LlamaConfig
from experiments.text.packing import Windows
from experiments.training import config
from experiments.training.checkpoint import Checkpoints
from experiments.training.optimizers import build_optimizer
from experiments.training.step import make_init, make_state_shardings

model = LlamaConfig(64, 32, 64, 2, 2, 16)
optimizer = build_optimizer(config.PretrainConfig(rank=4, steps=10, warmup_steps=1), lambda _: 1e-2)
init = make_init(model, optimizer, seed=0)[1]
abstract = jax.eval_shape(init)

def target(*sizes):
    count = int(np.prod(sizes))
    devices = np.array(jax.devices()[:count]).reshape(sizes)
    shardings = make_state_shardings(jax.sharding.Mesh(devices, mesh.AXES), optimizer, abstract)
    return shardings, jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
    )

def numbers(x, sharding):
    return jax.device_put(np.arange(x.size).astype(x.dtype).reshape(x.shape), sharding)

state = jax.tree.map(numbers, abstract, target(1, 4, 2)[0])
checkpoints = Checkpoints(Path(sys.argv[1]))
checkpoints.save(3, state, {"seconds": 1.0, "data": None})
checkpoints.close()
for sizes in ((2, 2, 1), (1, 1, 2), (1, 1, 1)):
    shardings, wanted = target(*sizes)
    _, restored, _ = Checkpoints(Path(sys.argv[1])).restore(wanted)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s, restored, shardings))
"""


def test_a_checkpoint_of_eight_devices_restores_on_four_two_and_one(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CHECKPOINT, str(tmp_path / "checkpoints")],
        env=os.environ | {"XLA_FLAGS": xla_flags(DEVICES.format(8)), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]

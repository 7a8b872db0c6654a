"""Our LLaMA against transformers.LlamaForCausalLM, weights crossing in both directions."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file

from experiments.llama import huggingface
from experiments.llama.attention import RopeScaling
from experiments.llama.model import Llama, LlamaConfig

CONFIGS = {
    "plain": LlamaConfig(96, 48, 80, 3, 4, 64),
    "grouped-query": LlamaConfig(96, 48, 80, 2, 6, 64, num_kv_heads=2, rope_theta=500000.0),
    "llama3 rope": LlamaConfig(
        96, 48, 80, 2, 4, 64, rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 16)
    ),
    "linear rope": LlamaConfig(96, 48, 80, 2, 4, 64, rope_scaling=RopeScaling("linear", 4.0)),
    "tied": LlamaConfig(96, 48, 80, 2, 4, 64, rms_eps=1e-5, tie_embeddings=True),
}
TOKENS = np.random.default_rng(0).integers(0, 96, (3, 37))


def torch_config(config: LlamaConfig) -> transformers.LlamaConfig:
    return transformers.LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        max_position_embeddings=config.max_sequence_length,
        rope_parameters={"rope_theta": config.rope_theta}
        | (
            dataclasses.asdict(config.rope_scaling)
            if config.rope_scaling
            else {"rope_type": "default"}
        ),
        rms_norm_eps=config.rms_eps,
        tie_word_embeddings=config.tie_embeddings,
        # Ten times the usual spread, or the logits would be too small to tell models apart.
        initializer_range=0.2,
    )


def torch_logits(model: torch.nn.Module) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(TOKENS)).logits.float().numpy()


def random_llama(config: LlamaConfig) -> Llama:
    """A model with nothing at its initial value: unit norms would hide one in the wrong place."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(1)
    return nnx.merge(
        graphdef,
        jax.tree.map(
            lambda p: jnp.asarray(rng.normal(0, 0.2, p.shape), p.dtype), nnx.to_pure_dict(state)
        ),
    )


@jax.jit
def logits(model: Llama) -> jax.Array:
    return model(jnp.asarray(TOKENS))


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def config(request) -> LlamaConfig:
    return dataclasses.replace(request.param, init_std=0.2)


@pytest.fixture
def torch_model(config) -> transformers.LlamaForCausalLM:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(torch_config(config)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return model


def test_theirs_loads_here(config, torch_model, tmp_path):
    torch_model.save_pretrained(tmp_path)
    ours = huggingface.load(tmp_path)
    assert ours.config == config
    expected = torch_logits(torch_model)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(logits(ours), expected, atol=1e-4, rtol=0)


def test_ours_loads_there(config, tmp_path):
    model = random_llama(config)
    huggingface.save(model, tmp_path / "new", eos_token_id=7)
    theirs, report = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path / "new", output_loading_info=True
    )
    assert not any(report.values()), report
    assert theirs.config.eos_token_id == 7
    assert theirs.dtype == torch.float32
    np.testing.assert_allclose(logits(model), torch_logits(theirs), atol=1e-4, rtol=0)


@pytest.mark.parametrize("config", [CONFIGS["grouped-query"]])
def test_shards_and_redundant_tensors_load(config, torch_model, tmp_path):
    torch_model.save_pretrained(tmp_path, max_shard_size="20kB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    # As early LLaMA checkpoints have it.
    save_file({"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4)}, tmp_path / "old")
    index["weight_map"]["model.layers.0.self_attn.rotary_emb.inv_freq"] = "old"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    np.testing.assert_allclose(
        logits(huggingface.load(tmp_path)),
        torch_logits(torch_model),
        atol=1e-4,
        rtol=0,
    )


def test_bfloat16_returns_bit_for_bit(tmp_path):
    config = dataclasses.replace(CONFIGS["grouped-query"], param_dtype="bfloat16")
    model = random_llama(config)
    huggingface.save(model, tmp_path)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert theirs.dtype == torch.bfloat16
    theirs.save_pretrained(tmp_path / "theirs")
    again = huggingface.load(tmp_path / "theirs", param_dtype="bfloat16", init_std=config.init_std)
    assert again.config == config
    for (path, mine), (_, back) in zip(
        nnx.to_flat_state(nnx.state(model)), nnx.to_flat_state(nnx.state(again)), strict=True
    ):
        assert back.dtype == jnp.bfloat16
        np.testing.assert_array_equal(mine[...], back[...], err_msg=str(path))


def test_saving_keeps_other_files_and_leaves_no_debris(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    model = random_llama(CONFIGS["tied"])
    huggingface.save(model, tmp_path)
    huggingface.save(model, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    huggingface.save(random_llama(CONFIGS["plain"]), folder)
    return folder


@pytest.fixture
def saved(saved_once, tmp_path):
    return shutil.copytree(saved_once, tmp_path, dirs_exist_ok=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mistral"}, "model_type is 'mistral', only 'llama'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"head_dim": 64}, "head_dim is 64, only 12"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2}}, "rope_type is 'yarn', only"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear"}}, "json: .*'factor'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0.5}}, "factor .* at least 1"),
        ({"hidden_size": None}, "config.json: missing hidden_size"),
        ({"intermediate_size": 88}, r"down_proj.weight has shape \(48, 80\).*\(48, 88\)"),
        ({"num_hidden_layers": 4}, "tensor model.layers.3.* is missing"),
        ({"num_hidden_layers": 2}, "9 tensors have no place here, first model.layers.2"),
    ],
)
def test_other_architectures_are_refused(saved, change, message):
    file = saved / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        huggingface.load(saved)


def test_absent_weights_are_named(saved):
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="neither model"):
        huggingface.load(saved)
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        huggingface.load(saved / "nowhere")

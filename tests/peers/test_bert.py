"""Our encoder against transformers' BERT, weights crossing in both directions."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from experiments.encoder import huggingface
from experiments.encoder.model import Classifier, EncoderConfig
from experiments.files import cache_directory

CONFIG = EncoderConfig(96, 48, 80, 3, 4, 64, init_std=0.2, labels=("a", "b", "c"))
LENGTHS = np.array([37, 9, 1])
TOKENS = np.random.default_rng(0).integers(0, 96, (3, 37))
MASK = torch.from_numpy((np.arange(37) < LENGTHS[:, None]).astype(int))


def theirs(model, tokens=TOKENS):
    with torch.no_grad():
        return model.eval()(input_ids=torch.from_numpy(tokens), attention_mask=MASK)


def ours(model, tokens=TOKENS):
    return np.asarray(model(jnp.asarray(tokens), jnp.asarray(LENGTHS)))


@pytest.fixture
def model():
    """A classifier with nothing at its initial value."""
    model = Classifier(CONFIG, rngs=nnx.Rngs(0))
    rngs = np.random.default_rng(1)
    for _, owner in nnx.iter_modules(model):
        for name, value in vars(owner).items():
            if isinstance(value, nnx.Param) and name.endswith(("bias", "scale")):
                value[...] += jnp.asarray(0.3 * rngs.standard_normal(value.shape), jnp.float32)
    return model


def test_what_we_write_transformers_reads_and_back(model, tmp_path):
    huggingface.save(model, tmp_path / "ours")
    loaded, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert loaded.config.id2label == {0: "a", 1: "b", 2: "c"}
    np.testing.assert_allclose(ours(model), theirs(loaded).logits, atol=1e-4)
    loaded.save_pretrained(tmp_path / "theirs")
    again = huggingface.load(tmp_path / "theirs", CONFIG.labels, seed=7)
    np.testing.assert_array_equal(ours(again), ours(model))


def test_a_bare_bert_and_a_masked_language_model_are_read(model, tmp_path):
    huggingface.save(model, tmp_path)
    for kind in (transformers.BertModel, transformers.BertForMaskedLM):
        kind.from_pretrained(tmp_path).save_pretrained(tmp_path / kind.__name__)
        read = huggingface.load(tmp_path / kind.__name__, ("x", "y"))
        hidden = read.hidden(jnp.asarray(TOKENS), jnp.asarray(LENGTHS))
        wanted = model.hidden(jnp.asarray(TOKENS), jnp.asarray(LENGTHS))
        np.testing.assert_array_equal(hidden, wanted)
        assert ours(read).shape == (3, 2)


def test_the_real_weights():
    folder = cache_directory() / "checkpoints" / "minilm"
    if not folder.exists():
        pytest.skip("minilm is not in the cache: python -m experiments.finetune --model minilm")
    tokens = np.random.default_rng(0).integers(0, 30_522, (3, 37))
    found = huggingface.load(folder, ("a", "b")).hidden(jnp.asarray(tokens), jnp.asarray(LENGTHS))
    wanted = theirs(transformers.BertModel.from_pretrained(folder), tokens).last_hidden_state
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(found[row, :length], wanted[row, :length], atol=1e-4)

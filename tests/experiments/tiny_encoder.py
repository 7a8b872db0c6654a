"""A Hugging Face folder of kilobytes: a BERT, and a tokenizer that marks a text's two ends."""

from pathlib import Path

import tokenizers
from flax import nnx

from experiments.encoder import huggingface
from experiments.encoder.model import Classifier, EncoderConfig
from tests.experiments.tiny_checkpoint import SENTENCES

WORDS = sorted({word for text in SENTENCES for word in text.split()} | {"label", ":"})
CONFIG = EncoderConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    max_sequence_length=24,
    init_std=0.3,
)


def write_encoder(folder: Path) -> Path:
    """Writes model and tokenizer."""
    huggingface.save(Classifier(CONFIG, rngs=nnx.Rngs(0)), folder)
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder

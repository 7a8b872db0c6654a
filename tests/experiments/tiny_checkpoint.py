"""A Hugging Face folder of kilobytes: a LLaMA with grouped queries and a tokenizer of its own."""

import json
from pathlib import Path
from pydoc_data.topics import topics

import tokenizers
from flax import nnx

from experiments.llama import huggingface
from experiments.llama.model import Llama, LlamaConfig

CONFIG = LlamaConfig(
    vocab_size=300,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    max_sequence_length=64,
    tie_embeddings=True,
    init_std=0.4,
)
TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
SENTENCES = {
    "the cat sleeps": "animal", "seven is odd": "number", "a dog barks": "animal",
    "four is even": "number", "two cows eat": "animal", "three and two": "number",
    "birds sing": "animal", "nine minus six": "number", "an old horse": "animal",
}  # fmt: skip


def write_checkpoint(folder: Path, **changes: object) -> Path:
    """Writes model and tokenizer; ``changes`` go into ``tokenizer_config.json``."""
    huggingface.save(Llama(CONFIG, rngs=nnx.Rngs(0)), folder, eos_token_id=1)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=CONFIG.vocab_size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([topics[name] for name in sorted(topics)], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "add_bos_token": True,
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | changes))
    return folder


def write_labels(path: Path) -> Path:
    """Sentences, each about animals or about numbers; the held-out ones occur among the others."""
    rows = [{"text": text, "label": label} for text, label in SENTENCES.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows * 4))
    return path

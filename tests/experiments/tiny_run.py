"""A run of seconds: a tiny model on the English help texts that ship with Python."""

import json
from pathlib import Path
from pydoc_data.topics import topics

MODEL = """
model:
  vocab_size: 258
  hidden_size: 32
  intermediate_size: 64
  num_layers: 2
  num_heads: 2
  max_sequence_length: 64
train:
  optimizer: fira
  lr: 1e-2
  scale: 0.25
  rank: 8
  update_proj_gap: 7
  batch_size: 8
  seq_len: 32
  steps: 30
  warmup_steps: 3
  min_lr_ratio: 0.1
  weight_decay: 0.0
  grad_clip: 0.0
  dtype: float32
  eval_every: 10
"""


def write_inputs(folder: Path) -> list[str]:
    """Writes model and text, and returns the flags that use them."""
    (folder / "tiny.yaml").write_text(MODEL)
    text = folder / "text"
    text.mkdir()
    with (text / "topics.jsonl").open("w") as file:
        for _, topic in sorted(topics.items()):
            paragraphs = topic.split("\n\n")
            for i in range(0, len(paragraphs), 8):
                file.write(json.dumps({"text": "\n\n".join(paragraphs[i : i + 8])}) + "\n")
    return [
        f"--model={folder / 'tiny.yaml'}",
        f"--dataset={text}",
        "--validation-tokens=2048",
    ]

"""Puts the demo's newest table and picture between the README's two demo marks.

Run it from anywhere: ``python docs/readme.py`` (or ``make readme``), after ``make demo``.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS / "_ext"))

from results import table_of  # noqa: E402

TITLES = {"adamw": "AdamW", "galore": "GaLore", "fira": "Fira"}
COLUMNS = ("name", "lr", "perplexity", "optimizer_state_bytes", "ms_per_update")
BEGIN, END = "<!-- demo:begin -->\n", "<!-- demo:end -->\n"


def demo_block(demo: dict[str, Any]) -> str:
    """Markdown: the picture, the table, and what was trained."""
    rows = [{**result, "name": TITLES[name]} for name, result in demo["results"].items()]
    headings, body = table_of(rows, list(COLUMNS))
    headings = ["optimizer", headings[1], "validation perplexity", *headings[3:]]
    lines = [headings, ["---", *["---:"] * (len(COLUMNS) - 1)], *body]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    settings, parameters = demo["settings"], rows[0]["parameters"]
    tokens = settings["steps"] * settings["batch_size"] * settings["seq_len"]
    return (
        "![Validation loss and optimizer state of AdamW, GaLore and Fira](docs/images/demo.png)\n\n"
        f"{table}\n\n"
        f"`make demo` on two shared CPU cores: a LLaMA of {parameters:,} parameters reads\n"
        f"{tokens:,} tokens of real text, from the same first weights in the same order, every\n"
        "optimizer at its own best learning rate ([how that was found](docs/results/demo.md)).\n"
    )


def with_demo(readme: str, demo: dict[str, Any]) -> str:
    """``readme`` with the block between its marks replaced."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}{demo_block(demo)}{END}{after}"


if __name__ == "__main__":
    readme = DOCS.parent / "README.md"
    demo = json.loads((DOCS / "results" / "demo.json").read_text())
    temporary = readme.with_suffix(".tmp")
    temporary.write_text(with_demo(readme.read_text(), demo))
    os.replace(temporary, readme)

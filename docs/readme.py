"""Puts the demo's newest picture and the evidence's table between the README's two demo marks.

Run it from anywhere: ``python docs/readme.py`` (or ``make readme``), after ``make demo``.
"""

import json
import os
import tomllib
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
TITLES = {
    "adamw": "AdamW",
    "galore": "GaLore",
    "fira": "Fira",
    "fira_tracked_gap10": "Fira, tracked",
    "fira_orthogonal": "Fira, orthogonalized",
}
# The evidence with runs as long as the demo's.
SIZE = "1m-long"
BEGIN, END = "<!-- demo:begin -->\n", "<!-- demo:end -->\n"
Line = dict[str, Any]


def perplexity(line: Line | None) -> str:
    """Mean and standard deviation over the seeds.

    Example:
      >>> perplexity({"perplexity": 5.0, "spread": 0.01})
      '5.00 ± 0.05'
    """
    if line is None:
        return "–"
    return f"{line['perplexity']:.2f} ± {line['perplexity'] * line['spread']:.2f}"


def table(tables: dict[str, list[Line]]) -> str:
    """Each optimizer at both ranks, the larger first."""
    lines = {
        (x["method"], x["at_rank"]): x
        for name in ("better", "claims")
        for x in tables[name]
        if x["size"] == SIZE and x["method"] in TITLES
    }
    ranks = sorted({rank for _, rank in lines}, reverse=True)
    rows = [["optimizer", *(f"perplexity, rank {rank}" for rank in ranks), "optimizer state"]]
    rows.append(["---", *["---:"] * (len(ranks) + 1)])
    for method, title in TITLES.items():
        found = [lines.get((method, rank)) for rank in ranks]
        sizes = {f"{x['state_bytes'] / 1e6:.2f}": None for x in found if x is not None}
        rows.append([title, *map(perplexity, found), f"{' and '.join(sizes)} MB"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def seeds(tables: dict[str, list[Line]]) -> int:
    """How many seeds each of the lines has at least."""
    return min(
        x["seeds"]
        for name in ("better", "claims")
        for x in tables[name]
        if x["size"] == SIZE and x["method"] in TITLES
    )


def demo_block(demo: dict[str, Any], tables: dict[str, list[Line]], raw: str, site: str) -> str:
    """Markdown: the picture, the table, and what was trained."""
    settings = demo["settings"]
    parameters = next(iter(demo["results"].values()))["parameters"]
    tokens = settings["steps"] * settings["batch_size"] * settings["seq_len"]
    return (
        f"![Validation loss and optimizer state]({raw}/docs/images/demo.png)\n\n"
        f"{table(tables)}\n\n"
        f"The picture is `make demo`, the table {seeds(tables)} seeds of runs as long: a LLaMA of\n"
        f"{parameters:,} parameters reads {tokens:,} bytes of real text on two shared CPU cores,\n"
        "every optimizer from the same first weights in the same order, at its own best learning\n"
        f"rate. [All methods]({site}results/reproduce.html), larger models, and\n"
        f"[what the last line is and costs]({site}guides/fira_orthogonal.html): more time a step,\n"
        "the more the smaller the batch.\n"
    )


def with_demo(readme: str, block: str) -> str:
    """``readme`` with what stands between its marks replaced."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}{block}{END}{after}"


def main() -> None:
    """Writes the README whole or not at all."""
    root = DOCS.parent
    urls = tomllib.loads((root / "pyproject.toml").read_text())["project"]["urls"]
    raw = urls["Repository"].replace("github.com", "raw.githubusercontent.com") + "/main"
    demo, reproduced = (
        json.loads((DOCS / "results" / f"{name}.json").read_text())
        for name in ("demo", "reproduce")
    )
    readme = root / "README.md"
    temporary = readme.with_suffix(".tmp")
    block = demo_block(demo, reproduced["tables"], raw, urls["Documentation"])
    temporary.write_text(with_demo(readme.read_text(), block))
    os.replace(temporary, readme)


if __name__ == "__main__":
    main()

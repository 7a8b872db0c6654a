"""Puts the evidence's newest table between the README's two marks.

Run it from anywhere: ``python docs/readme.py`` (or ``make readme``), after
``python -m experiments.reproduce``.
"""

import json
import os
import tomllib
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
SIZE = "1m-long"
TITLES = {
    "adamw": "AdamW",
    "galore": "GaLore",
    "fira": "Fira",
    "fira_tracked": "Fira, tracked",
    "fira_orthogonal": "Fira, orthogonalized",
}
HEADINGS = ("optimizer", "rank", "validation perplexity", "seeds", "optimizer state")
BEGIN, END = "<!-- evidence:begin -->\n", "<!-- evidence:end -->\n"


def cells(row: dict[str, Any]) -> list[str]:
    """One line; the spread of the loss is that of perplexity, relative to it."""
    return [
        TITLES[row["method"]],
        "–" if row["rank"] is None else str(row["rank"]),
        f"{row['perplexity']:.2f} ± {row['perplexity'] * row['spread']:.2f}",
        str(row["seeds"]),
        f"{row['state_bytes'] / 1e6:.2f} MB",
    ]


def rows(tables: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Each method once at each of its ranks, methods without one first."""
    found = {
        (line["rank"] or 0, list(TITLES).index(line["method"])): line
        for table in tables.values()
        for line in table
        if line["size"] == SIZE and line["method"] in TITLES
    }
    return [found[place] for place in sorted(found)]


def evidence_block(evidence: dict[str, Any], raw: str, site: str) -> str:
    """Markdown: the table, what was trained, and the demo's picture."""
    shown = rows(evidence["tables"])
    lines = [HEADINGS, ["---", *["---:"] * (len(HEADINGS) - 1)], *map(cells, shown)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    run = evidence["settings"]["sizes"][SIZE]
    weights = next(row["state_bytes"] for row in shown if row["method"] == "adamw") / 8
    read = run["steps"] * run["batch_size"] * run["seq_len"]
    return (
        f"{table}\n\n"
        f"A LLaMA of {weights / 1e6:.1f} million weights reads {read:,} bytes of real text on a\n"
        "CPU: the same first weights and the same order for all, each at its own best learning\n"
        "rate, ± the standard deviation over seeds. The larger the rank, the less the subspace\n"
        "misses, and the closer GaLore and Fira come. The\n"
        f"[orthogonalized]({site}guides/fira_orthogonal.html) one takes more time a step, the\n"
        "more the smaller the batch. Small models, short runs;\n"
        "[all methods, more sizes, and the tests of these\n"
        f"differences]({site}results/reproduce.html). Four of them in some minutes on your\n"
        "machine, one seed, by `make demo`\n"
        f"([what it shows]({site}results/demo.html)):\n\n"
        f"![Validation loss and optimizer state]({raw}/docs/images/demo.png)\n"
    )


def with_evidence(readme: str, block: str) -> str:
    """``readme`` with what stands between its marks replaced."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}{block}{END}{after}"


def main() -> None:
    """Writes the README whole or not at all."""
    root = DOCS.parent
    urls = tomllib.loads((root / "pyproject.toml").read_text())["project"]["urls"]
    raw = urls["Repository"].replace("github.com", "raw.githubusercontent.com") + "/main"
    evidence = json.loads((DOCS / "results" / "reproduce.json").read_text())
    readme = root / "README.md"
    temporary = readme.with_suffix(".tmp")
    block = evidence_block(evidence, raw, urls["Documentation"])
    temporary.write_text(with_evidence(readme.read_text(), block))
    os.replace(temporary, readme)


if __name__ == "__main__":
    main()

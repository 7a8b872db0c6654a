"""Puts the demo's newest tables and picture between the README's two demo marks.

Run it from anywhere: ``python docs/readme.py`` (or ``make readme``), after ``make demo``.
"""

import json
import math
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS / "_ext"))

from tables import table_of  # noqa: E402

TITLES = {
    "adamw": "AdamW",
    "galore": "GaLore",
    "fira": "Fira",
    "fira_tracked": "Fira, tracked",
}
COLUMNS = ("name", "rank", "perplexity", "optimizer_state_bytes", "ms_per_update", "lr")
BEGIN, END = "<!-- demo:begin -->\n", "<!-- demo:end -->\n"


def best(sweep: dict[str, Any], name: str) -> dict[str, Any]:
    """What an optimizer reached at the best learning rate of a search."""
    run = min(sweep["runs"][name], key=lambda run: run["eval_loss"])
    return {"lr": run["lr"], "perplexity": math.exp(run["eval_loss"])}


def rows(demo: dict[str, Any], sweep: dict[str, Any]) -> list[dict[str, Any]]:
    """The demo's, then the low-rank methods' at the other rank: the order is not the same there."""
    rank = demo["settings"]["rank"]
    shown = [
        {**result, "name": TITLES[name], "rank": None if name == "adamw" else rank}
        for name, result in demo["results"].items()
    ]
    for name in ("galore", "fira"):
        shown.append({**best(sweep, name), "name": TITLES[name], "rank": sweep["settings"]["rank"]})
    return shown


def over_seeds(tables: dict[str, list[dict[str, Any]]]) -> str:
    """What runs as long as the demo's, of several seeds and at two ranks, say beside Fira."""
    lines = [x for name in ("better", "claims") for x in tables[name] if x["size"] == "1m-long"]

    def beside_fira(method: str) -> tuple[int, int]:
        found = [round(x["percent_beside_fira"]) for x in lines if x["method"] == method]
        return min(found), max(found)

    named = ("fira_tracked_gap10", "galore", "adamw")
    (least, most), galore, adamw = map(beside_fira, named)
    seeds = min(x["seeds"] for x in lines if x["method"] in named)
    return (
        f"Over {seeds} seeds in runs as long, at two ranks, perplexity ends {-most} to {-least} %\n"
        f"below Fira's with tracked Fira, {galore[0]} to {galore[1]} % above it with GaLore and\n"
        f"{adamw[0]} to {adamw[1]} % with AdamW"
    )


def demo_block(
    demo: dict[str, Any], sweep: dict[str, Any], tables: dict[str, Any], raw: str, site: str
) -> str:
    """Markdown: the picture, the table, and what was trained."""
    headings, body = table_of(rows(demo, sweep), list(COLUMNS))
    headings = ["optimizer", headings[1], "validation perplexity", *headings[3:]]
    lines = [headings, ["---", *["---:"] * (len(COLUMNS) - 1)], *body]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    settings = demo["settings"]
    parameters = next(iter(demo["results"].values()))["parameters"]
    tokens = settings["steps"] * settings["batch_size"] * settings["seq_len"]
    return (
        f"![Validation loss and optimizer state]({raw}/docs/images/demo.png)\n\n"
        f"{table}\n\n"
        f"`make demo`, measured on two shared CPU cores: a LLaMA of {parameters:,} parameters\n"
        f"reads {tokens:,} tokens of real text, from the same first weights in the same order,\n"
        "every optimizer at its own best learning rate\n"
        f"([how that was found]({site}results/demo.html)).\n"
        "One seed. At the larger rank, where the subspace misses less, the two come closer.\n"
        f"{over_seeds(tables)}\n"
        f"([all methods, with spread]({site}results/reproduce.html)).\n"
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
    demo, sweep, reproduced = (
        json.loads((DOCS / "results" / f"{name}.json").read_text())
        for name in ("demo", "demo_sweep_rank32", "reproduce")
    )
    readme = root / "README.md"
    temporary = readme.with_suffix(".tmp")
    block = demo_block(demo, sweep, reproduced["tables"], raw, urls["Documentation"])
    temporary.write_text(with_demo(readme.read_text(), block))
    os.replace(temporary, readme)


if __name__ == "__main__":
    main()

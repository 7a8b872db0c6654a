"""Tables made from ``docs/results/*.json`` when the site is built.

Numbers reach the site only this way: a script of the repository writes the JSON, this directive
shows it. Files that are not there yet leave a note, so the build does not depend on them.

    ```{results} demo
    :rows: results
    :columns: lr, perplexity, optimizer_state_bytes
    :image: ../images/demo.png
    :command: make demo
    ```

``:where: topology=h100, fits=yes`` keeps the rows whose cells say so, ``:sort: -fits, peak_gib``
orders them, and ``:fold: All rows`` puts everything behind a line that opens. What is the same in
every row is told once, above the table.
"""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from tables import RESULTS, at, rows_of, selected, table_of, told_once


class Results(SphinxDirective):
    """Shows one table of one JSON file."""

    required_arguments = 1
    option_spec = {  # noqa: RUF012
        "rows": directives.unchanged,
        "columns": directives.unchanged,
        "where": directives.unchanged,
        "sort": directives.unchanged,
        "fold": directives.unchanged,
        "image": directives.unchanged,
        "command": directives.unchanged,
    }

    def run(self) -> list[nodes.Node]:
        """The table and picture, or a note that they have not been measured."""
        path = RESULTS / f"{self.arguments[0]}.json"
        self.env.note_dependency(str(path))
        command = self.options.get("command")
        value = at(path, self.options.get("rows", ""))
        if value is None:
            how = f": `{command}`" if command else ""
            return [nodes.note("", *self.parse_text_to_nodes(f"Not yet measured{how}."))]
        options = {key: _list(self.options.get(key)) for key in ("columns", "where", "sort")}
        rows = selected(rows_of(value), options["where"], options["sort"])
        table, told = told_once(*table_of(rows, options["columns"] or None))
        shown: list[nodes.Node] = [_table(*table)]
        if told:
            shown.insert(0, nodes.paragraph(text=f"In every row: {', '.join(told)}."))
        image = self.options.get("image")
        if image and (Path(self.get_source_info()[0]).parent / image).exists():
            shown += self.parse_text_to_nodes(f"![{self.arguments[0]}]({image})")
        if command:
            line = f"From `docs/results/{path.name}`, written by `{command}`."
            shown += self.parse_text_to_nodes(line)
        return _folded(self.options["fold"], shown) if "fold" in self.options else shown


class Evidence(SphinxDirective):
    """One line: how far a method came in the evidence, and how long its step took.

    Nothing for a method that is not in it.
    """

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The line."""
        path = RESULTS / "reproduce.json"
        self.env.note_dependency(str(path))
        rows = [row for table in (at(path, "tables") or {}).values() for row in table]
        wanted = [f"method={self.arguments[0]}", "size=1m", "at_rank=16"]
        for row in selected(rows, wanted, [])[:1]:
            spread = f" ± {row['spread']:.3f}" if row["spread"] is not None else ""
            seeds = "one seed" if row["seeds"] == 1 else f"{row['seeds']} seeds"
            text = (
                f"Loss {row['eval_loss']:.3f}{spread}, {seeds}, {row['ms_per_step']:.0f} ms a step"
            )
            return [nodes.paragraph(text=text)]
        return []


def _list(option: str | None) -> list[str]:
    return [part.strip() for part in option.split(",")] if option else []


def _folded(title: str, shown: list[nodes.Node]) -> list[nodes.Node]:
    begin = f'<details class="more"><summary>{html.escape(title)}</summary>'
    return [
        nodes.raw("", begin, format="html"),
        *shown,
        nodes.raw("", "</details>", format="html"),
    ]


def _table(headings: list[str], body: list[list[str]]) -> nodes.table:
    group = nodes.tgroup(cols=len(headings))
    group += [nodes.colspec(colwidth=1) for _ in headings]
    group += nodes.thead("", _row(headings))
    group += nodes.tbody("", *map(_row, body))
    return nodes.table("", group)


def _row(cells: list[str]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", nodes.paragraph(text=text)) for text in cells))


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the directives."""
    app.add_directive("results", Results)
    app.add_directive("evidence", Evidence)
    return {"version": "1", "parallel_read_safe": True}

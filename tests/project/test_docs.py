"""Every public name is documented and has an example; every example in the documentation runs."""

import ast
import contextlib
import importlib.util
import io
import re
from pathlib import Path

import pytest

import fira_jax

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def public_names(module, prefix):
    """What a package's ``__init__.py`` re-exports (``import x as x``) or defines."""
    for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
        if isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names if alias.asname == alias.name]
        elif isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            names = [node.name]
        else:
            names = []
        for name in names:
            value = getattr(module, name)
            if hasattr(value, "__path__"):
                yield from public_names(value, f"{prefix}.{name}")
            else:
                yield f"{prefix}.{name}", value


PUBLIC = dict(public_names(fira_jax, "fira_jax"))


def is_state(value):
    return isinstance(value, type) and issubclass(value, tuple)


def test_the_public_names_were_found():
    assert {"fira_jax.fira", "fira_jax.LowRank", "fira_jax.basis.Svd"} <= PUBLIC.keys()


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_has_a_docstring_with_an_example(name):
    documentation = PUBLIC[name].__doc__ or ""
    assert len(documentation.splitlines()[0].split()) >= 3
    if is_state(PUBLIC[name]):
        assert "Attributes:" in documentation
    else:
        assert ">>>" in documentation


def test_the_api_pages_have_exactly_the_public_names():
    pages = "\n".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    documented = re.findall(r"^\.\. auto\w+:: (\S+)$", pages, re.MULTILINE)
    assert sorted(documented) == sorted(PUBLIC)


def examples(page):
    """Pairs of a Python example and the output shown under it, if any."""
    blocks = FENCE.findall(page.read_text())
    return [
        (code, blocks[i + 1][1] if blocks[i + 1 : i + 2] and blocks[i + 1][0] == "text" else None)
        for i, (language, code) in enumerate(blocks)
        if language == "python"
    ]


@pytest.mark.parametrize(
    "page", [p for p in PAGES if examples(p)], ids=lambda page: str(page.relative_to(ROOT))
)
def test_the_examples_of_a_page_run_and_print_what_it_shows(page):
    namespace = {"__name__": "example"}
    for code, shown in examples(page):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, str(page), "exec"), namespace)
        assert shown in (None, printed.getvalue())


def test_wrong_output_on_a_page_would_be_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1)\n```\n\nwhich prints\n\n```text\n2\n```\n")
    with pytest.raises(AssertionError):
        test_the_examples_of_a_page_run_and_print_what_it_shows(page)


def test_the_evidence_gets_into_the_readme_and_nothing_else_changes():
    readme = import_file(ROOT / "docs" / "readme.py")

    def line(method, rank, at_rank, size=readme.SIZE, perplexity=12.345):
        return {
            "method": method,
            "rank": rank,
            "at_rank": at_rank,
            "size": size,
            "seeds": 4,
            "perplexity": perplexity,
            "spread": 0.02,
            "state_bytes": 3_460_000,
        }

    tables = {
        "pretraining": [line("fira", 8, 8), line("adamw", None, 4), line("muon", None, 4)],
        "claims": [line("adamw", None, 8), line("fira", 4, 4), line("fira", 16, 16, size="1m")],
    }
    run = {"steps": 3, "batch_size": 2, "seq_len": 8}
    evidence = {"tables": tables, "settings": {"sizes": {readme.SIZE: run}}}
    block = readme.evidence_block(evidence, "https://raw", "https://site/")
    table = [text for text in block.splitlines() if text.startswith("| ")][2:]
    assert [text.split(" | ")[:2] for text in table] == [
        ["| AdamW", "–"],
        ["| Fira", "4"],
        ["| Fira", "8"],
    ]
    assert table[1] == "| Fira | 4 | 12.35 ± 0.25 | 4 | 3.46 MB |"
    assert "0.4 million weights reads 48 bytes" in block
    text = (ROOT / "README.md").read_text()
    changed = readme.with_evidence(text, block)
    assert block in changed
    assert readme.with_evidence(changed, block) == changed
    for outside in (0, -1):
        marks = re.compile("<!-- evidence:(?:begin|end) -->")
        assert marks.split(changed)[outside] == marks.split(text)[outside]


def test_what_is_the_same_in_every_row_is_told_once():
    told_once = import_file(ROOT / "docs" / "_ext" / "tables.py").told_once
    body = [["a", "1", "x"], ["b", "1", "y"], ["c", "1", "x"]]
    assert told_once(["name", "seeds", "kind"], body) == (
        (["name", "kind"], [["a", "x"], ["b", "y"], ["c", "x"]]),
        ["seeds 1"],
    )
    assert told_once(["name", "seeds"], [["a", "1"], ["b", "1"]])[1] == []
    assert told_once(["name"], []) == ((["name"], []), [])


def import_file(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

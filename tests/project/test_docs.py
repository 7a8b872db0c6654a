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


def test_the_demo_gets_into_the_readme_and_nothing_else_changes():
    readme = import_file(ROOT / "docs" / "readme.py")
    settings = {"steps": 3, "batch_size": 2, "seq_len": 8}
    demo = {"settings": settings, "results": {"fira": {"parameters": 1000}}}

    def line(method, rank, perplexity, size="1m-long", state=1_230_000):
        return {
            "method": method, "size": size, "at_rank": rank, "perplexity": perplexity,
            "spread": 0.01, "seeds": 4, "state_bytes": state,
        }  # fmt: skip

    tables = {
        "better": [
            line("fira", 8, 5.5),
            line("fira", 16, 5.0, state=2_340_000),
            line("fira", 16, 9.0, size="1m"),
            line("fira_orthogonal", 16, 4.0),
            line("racs", 16, 3.0),
        ],
        "claims": [line("adamw", rank, 6.0) for rank in (8, 16)],
    }
    block = readme.demo_block(demo, tables, "https://raw", "https://site/")
    assert "| optimizer | perplexity, rank 16 | perplexity, rank 8 | optimizer state |\n" in block
    assert "| AdamW | 6.00 ± 0.06 | 6.00 ± 0.06 | 1.23 MB |\n" in block
    assert "| Fira | 5.00 ± 0.05 | 5.50 ± 0.06 | 2.34 and 1.23 MB |\n" in block
    assert "| Fira, orthogonalized | 4.00 ± 0.04 | – | 1.23 MB |\n" in block
    assert "3.00" not in block
    assert "4 seeds" in block
    assert "48 bytes" in block
    text = (ROOT / "README.md").read_text()
    changed = readme.with_demo(text, block)
    assert block in changed
    assert readme.with_demo(changed, block) == changed
    for outside in (0, -1):
        marks = re.compile("<!-- demo:(?:begin|end) -->")
        assert marks.split(changed)[outside] == marks.split(text)[outside]


def import_file(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

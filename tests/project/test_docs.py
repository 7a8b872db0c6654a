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
    result = {
        "lr": 0.01,
        "parameters": 1000,
        "perplexity": 12.345,
        "optimizer_state_bytes": 3_460_000,
        "ms_per_update": 4.5,
    }
    settings = {"steps": 3, "batch_size": 2, "seq_len": 8, "rank": 4}
    demo = {"settings": settings, "results": {"adamw": result, "fira": result}}
    runs = [{"lr": 0.5, "eval_loss": 2.0}, {"lr": 0.25, "eval_loss": 1.0}]
    sweep = {"settings": {"rank": 16}, "runs": {"galore": runs, "fira": runs}}

    def line(method, percent, size="1m-long"):
        return {"method": method, "size": size, "percent_beside_fira": percent, "seeds": 4}

    tables = {
        "better": [
            line("fira_tracked_gap10", -3.2),
            line("fira_tracked_gap10", -4.6),
            line("fira_tracked_gap10", -40.0, size="1m"),
        ],
        "claims": [line("galore", 7.1), line("galore", 11.9), line("adamw", 20.0)],
    }
    block = readme.demo_block(demo, sweep, tables, "https://raw", "https://site/")
    assert "Over 4 seeds in runs as long, at two ranks, perplexity ends 3 to 5 %\n" in block
    assert "7 to 12 % above it with GaLore and\n20 to 20 % with AdamW\n" in block
    assert "| Fira | 4 | 12.35 | 3.46 MB | 4.5 | 0.01 |\n" in block
    assert "| GaLore | 16 | 2.718 | – | – | 0.25 |\n" in block
    assert "48 tokens" in block
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

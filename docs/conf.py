"""Sphinx configuration; built strictly: any warning is an error."""

import importlib.util
import re
import sys
from pathlib import Path

import fira_jax

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "fira_jax"
author = "The fira_jax authors"
copyright = "2026, the fira_jax authors"
version = release = fira_jax.__version__

extensions = [
    "myst_nb",
    "results",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "jupyter_execute", "_ext", "figures"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
# Notebooks are executed by `make notebooks` and checked by `make notebooks-check`.
nb_execution_mode = "off"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
# Shown by their names instead of as unions of eight types.
autodoc_type_aliases = {
    name: name
    for name in ("jax.typing.ArrayLike", "jax.typing.DTypeLike", "optax.ScalarOrSchedule")
}
python_maximum_signature_line_length = 88
python_display_short_literal_types = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# MathJax as a file of this site: formulas render without a network.
_mathjax = Path(importlib.util.find_spec("mathjax").origin).parent / "static" / "mathjax" / "es5"
html_static_path = [str(_mathjax / "tex-svg.js"), "_static"]
mathjax_path = "tex-svg.js"

html_theme = "furo"
html_title = "fira_jax"
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_theme_options = {"navigation_with_keys": True}


def setup(app):
    # Sphinx 9 shows an alias in a union by its class.
    app.connect(
        "autodoc-process-signature",
        lambda *event: tuple(
            text and re.sub(r"TypeAliasForwardRef\('([^']+)'\)", r"\1", text) for text in event[-2:]
        ),
    )

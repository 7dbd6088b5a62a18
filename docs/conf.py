import tomllib
from pathlib import Path

from docutils.nodes import SkipNode
from math_core import LatexError, LatexToMathML
from sphinx.util import logging

import stablegrad_optax

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

project = "stablegrad-optax"
author = copyright = "the stablegrad-optax authors"
version = release = stablegrad_optax.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
    "sphinx_design",
]
exclude_patterns = ["_build"]
default_role = "code"

# A link that leads nowhere is a warning, and warnings are errors.
nitpicky = True
nitpick_ignore = [
    ("py:exc", "ImportError"),
    ("py:exc", "ValueError"),
]

# Links may lead to the headings of a page, as they do on a code host.
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]

# The docstrings say what is accepted; jax.typing's unions would fill the signatures.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# Examples in docstrings are run by pytest, with their module's names at hand. The pages
# have testcode directives of their own, which share their names within a page.
doctest_test_doctest_blocks = ""
doctest_global_setup = "import matplotlib; matplotlib.use('agg')"
# A page imports the network whose file it shows.
doctest_path = [str(ROOT)]

html_theme = "furo"
html_title = f"stablegrad-optax {version}"
html_show_sourcelink = False
pygments_dark_style = "a11y-dark"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_math_renderer = "mathml"


def footer_link(text, url):
    return {"name": text, "url": url, "html": text, "class": ""}


html_theme_options = {
    "footer_icons": [
        footer_link(
            "Apache 2.0 licence", "https://www.apache.org/licenses/LICENSE-2.0"
        ),
        footer_link("Paper", "https://arxiv.org/abs/2605.19856"),
        *(
            footer_link(name, url)
            for name, url in PYPROJECT["project"].get("urls", {}).items()
            if name == "Repository"
        ),
    ],
}

# Formulas are MathML, which browsers draw without a script, fonts or a network.
MATHML = LatexToMathML(fancy_error=False)


def mathml(node, displaystyle):
    try:
        return MATHML.convert_with_local_state(node.astext(), displaystyle=displaystyle)
    except LatexError as error:
        logging.getLogger(__name__).warning("formula: %s", error, location=node)
        raise SkipNode from None


def visit_math(translator, node):
    translator.body.append(f'<span class="math">{mathml(node, False)}</span>')
    raise SkipNode


def visit_displaymath(translator, node):
    translator.body.append(translator.starttag(node, "div", CLASS="math"))
    translator.body.append(f"{mathml(node, True)}</div>\n")
    raise SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_displaymath, None))

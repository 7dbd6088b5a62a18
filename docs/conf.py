from pathlib import Path

from docutils.nodes import SkipNode
from math_core import LatexError, LatexToMathML
from sphinx.util import logging

import stablegrad_optax

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
doctest_path = [str(Path(__file__).parents[1])]

html_theme = "furo"
html_title = f"stablegrad-optax {version}"
html_show_sourcelink = False
pygments_dark_style = "a11y-dark"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_math_renderer = "mathml"


html_theme_options = {
    "footer_icons": [
        {"name": name, "url": url, "html": name, "class": ""}
        for name, url in {
            "Apache 2.0 licence": "https://www.apache.org/licenses/LICENSE-2.0",
            "Paper": "https://arxiv.org/abs/2605.19856",
        }.items()
    ],
}

# Formulas are MathML, which browsers draw without a script, fonts or a network.
MATHML = LatexToMathML(fancy_error=False)


def visit_math(translator, node):
    is_block = node.tagname == "math_block"
    try:
        formula = MATHML.convert_with_local_state(node.astext(), displaystyle=is_block)
    except LatexError as error:
        logging.getLogger(__name__).warning("formula: %s", error, location=node)
        raise SkipNode from None
    tag = "div" if is_block else "span"
    translator.body.append(translator.starttag(node, tag, "", CLASS="math"))
    translator.body.append(f"{formula}</{tag}>")
    raise SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))

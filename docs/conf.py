import stablegrad_optax

project = "stablegrad-optax"
author = "the stablegrad-optax authors"
version = release = stablegrad_optax.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
default_role = "code"

# A link that leads nowhere is a warning, and warnings are errors.
nitpicky = True
nitpick_ignore = [
    ("py:exc", "ImportError"),
    ("py:exc", "ValueError"),
]

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

html_theme = "furo"
html_title = f"stablegrad-optax {version}"
html_show_sourcelink = False
# Recipes end before a marker, which ruff sets apart by two lines.
highlight_options = {"stripnl": True}

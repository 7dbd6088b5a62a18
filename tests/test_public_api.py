"""`__all__`, the pages and the docstrings tell of the same names."""

import inspect
import operator
import re
import subprocess
import sys
from pathlib import Path

import pytest

import stablegrad_optax as sg

TESTS = Path(__file__).parent
DOCS = TESTS.parent / "docs"
API_PAGE = DOCS / "api.md"

FUNCTIONS = [
    "balance_terms",
    "initializers.critical",
    "initializers.variance_preserving",
    "layer_scales",
    "plotting.plot_layer_scales",
    "plotting.plot_term_scales",
    "reference_scale",
    "stablegrad",
    "tabulate",
    "term_alignment",
    "term_scales",
    "value_and_grad_of_terms",
    "value_and_grad_with_reference",
]
PUBLIC = sorted([*FUNCTIONS, "BalanceTermsState"])


def test_all_is_what_the_contract_names():
    assert set(sg.__all__) == {name.split(".")[0] for name in PUBLIC}
    for module in (sg.initializers, sg.plotting):
        name = module.__name__.removeprefix("stablegrad_optax.")
        functions = inspect.getmembers(module, inspect.isfunction)
        public = [
            f"{name}.{function}"
            for function, value in functions
            if value.__module__ == module.__name__ and not function.startswith("_")
        ]
        assert public == [f for f in FUNCTIONS if f.startswith(name)]


@pytest.mark.parametrize(
    "named",
    [
        r"\{py:\w+\}`[^`]*?~?stablegrad_optax\.([\w.]+)>?`",
        r"(?:autofunction|autoclass):: stablegrad_optax\.([\w.]+)",
    ],
    ids=["table", "entries"],
)
def test_the_api_page_has_every_public_name_and_no_other(named):
    assert sorted(re.findall(named, API_PAGE.read_text())) == PUBLIC


def test_the_compatibility_page_names_tests_that_are_there():
    page = (DOCS / "compatibility.md").read_text()
    shown = re.findall(r"\| `([\w/]+\.py)::(\w+)` \|$", page, re.MULTILINE)
    assert len(shown) == page.count("\n|") - 2  # all rows but the head
    for file, test in shown:
        assert f"\ndef {test}(" in (TESTS / file).read_text()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstrings_are_complete(name):
    function = operator.attrgetter(name)(sg)
    doc = inspect.getdoc(function)
    for section in ("Args:", "Returns:", "Raises:", "Example:", ">>> "):
        assert section in doc, section
    arguments = doc.split("Args:")[1].split("Returns:")[0]
    for parameter in inspect.signature(function).parameters:
        assert re.search(rf"\b{parameter}\b", arguments), parameter


def test_importing_it_imports_little_beside_jax_and_optax():
    """Matplotlib, say, takes longer than the rest of the library."""
    code = (
        "import sys, jax, optax; before = set(sys.modules); import stablegrad_optax; "
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    loaded = set(result.stdout.split()) - sys.stdlib_module_names
    assert loaded - {"jax"} == {"stablegrad_optax"}

"""`__all__`, the API page and the docstrings tell of the same names."""

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import stablegrad_optax as sg

DOCS = Path(__file__).parents[1] / "docs"

SUBMODULES = {
    "initializers": ["critical", "variance_preserving"],
    "plotting": ["plot_layer_scales", "plot_term_scales"],
}
FUNCTIONS = sorted(name for name in sg.__all__ if inspect.isfunction(getattr(sg, name)))
QUALIFIED = FUNCTIONS + [
    f"{m}.{name}" for m, names in SUBMODULES.items() for name in names
]


def resolve(name):
    *module, attribute = name.split(".")
    return getattr(
        importlib.import_module(".".join(["stablegrad_optax", *module])), attribute
    )


def test_all_is_what_the_contract_names():
    assert set(sg.__all__) == {*FUNCTIONS, *SUBMODULES, "StableGradState"}
    assert FUNCTIONS == [
        "balance_terms",
        "layer_scales",
        "reference_scale",
        "stablegrad",
        "tabulate",
        "term_alignment",
        "term_scales",
        "value_and_grad_of_terms",
        "value_and_grad_with_reference",
    ]


@pytest.mark.parametrize("module", SUBMODULES)
def test_public_names_of_submodules(module):
    functions = [
        name
        for name, value in vars(getattr(sg, module)).items()
        if inspect.isfunction(value)
        and value.__module__ == f"stablegrad_optax.{module}"
        and not name.startswith("_")
    ]
    assert sorted(functions) == SUBMODULES[module]


@pytest.mark.parametrize(
    "named",
    [
        r"\{py:\w+\}`[^`]*?~?stablegrad_optax\.([\w.]+)>?`",
        r"(?:autofunction|py:data):: stablegrad_optax\.([\w.]+)",
    ],
    ids=["table", "entries"],
)
def test_the_api_page_has_every_public_name_and_no_other(named):
    found = re.findall(named, (DOCS / "api.md").read_text())
    assert sorted(found) == sorted([*QUALIFIED, "StableGradState"])


@pytest.mark.parametrize("name", QUALIFIED)
def test_docstrings_are_complete(name):
    function = resolve(name)
    doc = inspect.getdoc(function)
    for section in ("Args:", "Returns:", "Raises:", "Example:"):
        assert section in doc, section
    assert ">>> " in doc
    arguments = doc.split("Args:")[1].split("Returns:")[0]
    for parameter in inspect.signature(function).parameters:
        assert re.search(rf"\b{parameter}\b", arguments), parameter


def test_state_is_optax_s_empty_state():
    import optax

    assert sg.StableGradState is optax.EmptyState


def test_importing_it_imports_little_beside_jax_and_optax():
    """SciPy's optimisers alone take longer than the rest of the library."""
    code = (
        "import sys, jax, optax; before = set(sys.modules); import stablegrad_optax; "
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    loaded = set(result.stdout.split()) - sys.stdlib_module_names
    assert loaded == {"stablegrad_optax"}

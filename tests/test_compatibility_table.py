"""The table says what ran: passed is shown, skipped is not, failed is an error."""

import pytest
from compatibility_table import PAGE, in_page, table


def outcome(name, outcome="passed", test="tests/test_x.py::test_y[0]", kind="wrapper"):
    return {"kind": kind, "name": name, "test": test, "outcome": outcome}


def test_rows():
    rows = table(
        [
            outcome("optax.masked"),
            outcome("optax.masked", test="tests/test_x.py::test_y[1]"),
            outcome("optax.masked", test="tests/test_x.py::test_z"),
            outcome("Haiku", kind="framework"),
            outcome("optax.chain", "skipped"),
        ]
    ).splitlines()[2:]
    assert rows == [
        "| Wrapper | `optax.masked` | `test_x.py::test_y` and 1 more |",
        "| Framework | Haiku | `test_x.py::test_y` |",
    ]


def test_a_failure_is_not_hidden():
    with pytest.raises(ValueError, match="has failed"):
        table([outcome("optax.chain", "failed")])


def test_the_page_holds_one_table():
    text = PAGE.read_text()
    assert text.count("| works with |") == 1
    replaced = in_page(text, "new\n")
    assert "| works with |" not in replaced
    assert in_page(replaced, "new\n") == replaced

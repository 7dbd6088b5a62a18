"""Measured numbers on the pages come from the records: what is stale is found."""

import re

import numpy as np
import pytest

from docs.results.names import score
from docs.results.pages import BLOCK, INLINE, filled, places
from docs.results.records import ROOT, Result, ResultError, best
from docs.results.sources import recipe, source, source_diff
from docs.results.verdicts import verdict
from examples.image_classification.scores import ACCURACY
from examples.pinn.scores import ERROR

PAGE = """\
# Page

Errors of 0.50<!-- = error() --> (or 0.30<!-- = other("a, b") -->).

<!-- results: table() -->

| a |
| --- |
| 1 |

[Raw values](../raw.json), [site](https://site.org)
<!-- end -->

The end.
"""
NAMES_OF_PAGE = {
    "error": lambda: "0.50",
    "other": lambda text: "0.30",
    "table": lambda: (
        "| a |\n| --- |\n| 1 |\n\n[Raw values](raw.json), [site](https://site.org)"
    ),
}


def messages(text, names=NAMES_OF_PAGE):
    found = places(text, "docs/page.md", names)
    return [message for place in found for message in place.differences()]


def test_nothing_is_said_of_a_page_that_holds_the_numbers():
    assert messages(PAGE) == []
    assert filled(PAGE, "docs/page.md", NAMES_OF_PAGE) == PAGE


def test_a_stale_number_is_found_with_page_and_line():
    (message,) = messages(PAGE.replace("0.50<", "0.51<"))
    assert message == "docs/page.md:3: error()\n  found    0.51\n  expected 0.50"


def test_a_stale_line_of_a_table_is_found_with_page_and_line():
    (message,) = messages(PAGE.replace("| 1 |", "| 2 |"))
    assert message == "docs/page.md:9: table()\n  found    | 2 |\n  expected | 1 |"


def test_a_row_too_many_is_found():
    stale = PAGE.replace("| 1 |\n", "| 1 |\n| 2 |\n")
    assert messages(stale)[0].startswith("docs/page.md:10: table()\n  found    | 2 |")


def test_writing_makes_a_page_whole_and_is_idempotent():
    stale = PAGE.replace("0.30<", "0.0<").replace("| 1 |\n", "")
    assert filled(stale, "docs/page.md", NAMES_OF_PAGE) == PAGE
    empty = re.sub(r"(-->\n)\n\|.*?(<!-- end)", r"\1\2", PAGE, flags=re.DOTALL)
    assert filled(empty, "docs/page.md", NAMES_OF_PAGE) == PAGE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1<!-- = unknown() -->", "docs/page.md:1: .*: name 'unknown' is not"),
        (
            "\n1<!-- = score('none') -->",
            "docs/page.md:2: .*no file .*none_cpu",
        ),
        (
            "1<!-- = score('pinn_depth', depth=3) -->",
            "docs/page.md:1: .*pinn_depth_cpu.json has no run with depth 3",
        ),
        (
            "1<!-- = score('pinn_depth', depth=64) -->",
            "docs/page.md:1: .*has several runs with depth 64",
        ),
        (
            "1<!-- = score('pinn_depth', 'muon', rate=7, depth=64) -->",
            "docs/page.md:1: .*no rate of 7",
        ),
        ("1<!-- = score( -->", "docs/page.md:1: score\\(: .*never closed"),
        ("1<!-- = words() -->", "docs/page.md:1: words.*: a number is one word"),
        ("\n1 <!-- = words() -->", "docs/page.md:2: .*right in front"),
        ("\n<!-- results: words() -->\n", "docs/page.md:2: there is no <!-- end -->"),
        (
            "<!-- results: words() -->\n<!-- results: words() -->\n<!-- end -->",
            "docs/page.md:1: there is no <!-- end -->",
        ),
    ],
)
def test_what_gives_no_number_fails_with_one_line(text, message):
    with pytest.raises(ResultError, match=message) as error:
        filled(text, "docs/page.md", {"score": score, "words": lambda: "two words"})
    assert "\n" not in str(error.value)


def test_code_on_a_page_is_left_as_it_is():
    code = "```python\nu = layers[0](x)\n```"
    page = "<!-- results: code() -->\n<!-- end -->\n"
    written = filled(page, "docs/page.md", {"code": lambda: code})
    assert code in written
    assert filled(written, "docs/page.md", {"code": lambda: code}) == written


def test_a_file_is_shown_whole_and_a_recipe_without_its_marks():
    path = "tests/integrations/test_optimistix.py"
    code = (ROOT / path).read_text()
    assert source(path) == f"```python\n{code.rstrip()}\n```"
    lines = recipe(path, "minimise").splitlines()
    assert (lines[0], lines[-1]) == ("```python", "```")
    assert "\n".join(lines[1:-1]) in code
    assert not any("recipe" in line for line in lines)


def test_a_diff_holds_the_lines_of_both_files_and_no_file_name():
    folder = "examples/remove_batchnorm"
    first, *lines, last = source_diff(
        f"{folder}/before.py", f"{folder}/after.py"
    ).split("\n")
    assert (first, last) == ("```diff", "```")
    assert lines[0].startswith("@@ ")
    assert {line[0] for line in lines} == set("@ +-")
    assert not any(line.startswith(("+++", "---")) for line in lines)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: source("examples/none.py"), "there is no file examples/none.py"),
        (
            lambda: recipe("tests/integrations/test_haiku.py", "none"),
            "test_haiku.py has no recipe none",
        ),
        (lambda: source("docs/index.md"), "must not hold ```"),
    ],
)
def test_code_that_cannot_be_shown_is_an_error(make, message):
    with pytest.raises(ResultError, match=message):
        make()


def test_the_best_rate_of_runs_that_differ_in_rates_only():
    wanted = {"depth": 128, "optimizer": "adam", "scale_control": "none"}
    result = best("pinn_depth", **wanted)
    assert len(result.rates) == 3  # of two runs
    others = [result.at(rate).median for rate in result.rates]
    assert result.median == min(others)


def result(measure, *scores):
    return Result(measure, {}, 1e-3, {1e-3: np.array(scores)})


@pytest.mark.parametrize(
    ("ours", "other", "expected"),
    [
        ([1, 2, 3], [4, 5, 6], "wins"),
        ([1, 2, 4], [4, 5, 6], "ties"),  # one seed is no better
        ([1, 5, 6], [2, 3, 5], "ties"),  # nor is the median worse than all
        ([1, 5, 6], [2, 3, 4], "loses"),  # though one seed is the best
    ],
)
def test_the_verdict_is_strict_against_ourselves(ours, other, expected):
    assert verdict(result(ERROR, *ours), result(ERROR, *other)) == expected
    # Accuracies are better the higher they are.
    ours, other = 1 - np.array(ours) / 10, 1 - np.array(other) / 10
    found = verdict(result(ACCURACY, *ours), result(ACCURACY, *other))
    assert found == expected


@pytest.mark.parametrize(
    ("ours", "expected"), [(0.92, "wins"), (0.91, "ties"), (0.88, "loses")]
)
def test_one_seed_is_a_range_of_a_standard_error(ours, expected):
    pair = result(ACCURACY, ours), result(ACCURACY, 0.9)
    assert verdict(*pair, 0.006) == expected


# Published by others, or chosen by us: a threshold, a rate, a range of weights.
OTHERS = {
    "pinns": {"0.197", "0.0064", "0.0020", "5.6e-4", "0.1"},
    "loss_terms": {"0.0020", "0.01", "1e-2"},
    "images": set(),
    "choosing": set(),
    "faq": set(),
    "examples": set(),
}


@pytest.mark.parametrize("page", OTHERS)
def test_every_measured_number_in_the_text_says_where_it_is_from(page):
    text = (ROOT / f"docs/{page}.md").read_text()
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\(https?:[^)]*\)|`[^`]*`", "", text)
    text = INLINE.sub("", BLOCK.sub("", text))
    assert set(re.findall(r"\d[\d.]*e-\d+|\d+\.\d+", text)) <= OTHERS[page]

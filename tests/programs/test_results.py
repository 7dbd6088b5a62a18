"""Measured numbers on the pages come from the records: what is stale is found."""

import functools
import importlib
import re
import shlex

import numpy as np
import pytest
import tyro

from docs.results import __main__ as program
from docs.results.pages import BLOCK, INLINE, filled, recipe, source, source_diff
from docs.results.records import ROOT, Result, ResultError, best
from docs.results.tables import verdict

PAGE = """\
# Page

Errors of 0.50<!-- = error() --> (or 0.30<!-- = other("a, b") -->).

<!-- results: table() -->

| a |
| --- |
| 1 |

[Raw values](../raw.json), [site](https://site.org)

<!-- end -->

<!-- results: code() -->

```python
u = layers[0](x)
```
<!-- end -->
"""
NAMES = {
    "error": lambda: "0.50",
    "other": lambda text: "0.30",
    "table": lambda: (
        "| a |\n| --- |\n| 1 |\n\n[Raw values](raw.json), [site](https://site.org)\n"
    ),
    "code": lambda: "```python\nu = layers[0](x)\n```",
    "words": lambda: "two words",
}


@pytest.mark.parametrize(
    ("new", "stale"),
    [("", ""), ("0.30<", "0.0<"), ("| 1 |\n", ""), ("| 1 |\n", "| 1 |\n| 2 |\n")],
)
def test_a_stale_page_is_made_whole(new, stale):
    assert filled(PAGE.replace(new, stale), "docs/page.md", NAMES) == PAGE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1<!-- = unknown() -->", "docs/page.md:1: .*: name 'unknown' is not"),
        ("1<!-- = error( -->", "docs/page.md:1: error\\(: .*never closed"),
        ("1<!-- = words() -->", "docs/page.md:1: words.*: a number is one word"),
        ("\n1 <!-- = words() -->", "docs/page.md:2: .*right in front"),
        ("\n<!-- results: words() -->\n", "docs/page.md:2: no <!-- end -->"),
        (
            "<!-- results: words() -->\n<!-- results: words() -->\n<!-- end -->",
            "docs/page.md:1: no <!-- end -->",
        ),
    ],
)
def test_what_gives_no_number_fails_with_one_line(text, message):
    with pytest.raises(ResultError, match=message) as error:
        filled(text, "docs/page.md", NAMES)
    assert "\n" not in str(error.value)


def test_the_program_says_what_is_stale_and_writes_it(tmp_path, monkeypatch, capsys):
    path = tmp_path / "page.md"
    path.write_text("0.1<!-- = score('pinn_depth_balanced', depth=64) -->\n")
    monkeypatch.setattr(program, "ROOT", tmp_path)
    monkeypatch.setattr(program, "pages", lambda: ["page.md"])
    for option, code in (["--check"], 1), ([], 0), (["--check"], 0):
        monkeypatch.setattr("sys.argv", ["results", *option])
        assert program.main() == code
    assert re.search(r"page.md\n.*\n-0\.1<.*\n\+0\.00\d+<", capsys.readouterr().err)


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
    diff = source_diff(f"{folder}/before.py", f"{folder}/after.py")
    first, hunk, *lines, last = diff.split("\n")
    assert (first, hunk[:3], last) == ("```diff", "@@ ", "```")
    assert {line[0] for line in lines} <= set("@ +-")
    assert not any(line.startswith(("+++", "---")) for line in lines)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: source("examples/none.py"), "there is no file examples/none.py"),
        (lambda: recipe("docs/conf.py", "none"), "conf.py has no recipe none"),
        (lambda: source("docs/index.md"), "must not hold ```"),
        (lambda: best("none"), "no file .*none_cpu"),
        (lambda: best("pinn_depth", depth=3), "pinn_depth_cpu.* no run with depth 3"),
        (lambda: best("pinn_depth", depth=64), "several runs with depth 64"),
        (lambda: best("pinn_depth_balanced", depth=64, rate=7), "no rate of 7"),
    ],
)
def test_what_is_not_there_is_an_error(make, message):
    with pytest.raises(ResultError, match=message):
        make()


def test_the_best_rate_of_runs_that_differ_in_rates_only():
    wanted = {"depth": 128, "optimizer": "adam", "scale_control": "none"}
    result = best("pinn_depth", **wanted)
    assert len(result.by_rate) == 3  # of two runs
    assert result.median == min(map(np.median, result.by_rate.values()))


@pytest.mark.parametrize(
    ("ours", "other", "expected"),
    [
        ([1, 2, 3], [4, 5, 6], "wins"),
        ([1, 2, 4], [4, 5, 6], "ties"),  # one seed is no better
        ([1, 5, 6], [2, 3, 5], "ties"),  # nor is the median worse than all
        ([1, 5, 6], [2, 3, 4], "loses"),  # though one seed is the best
        # One seed is a range of a standard error, here 0.6, to both sides.
        ([0.7], [2], "wins"),
        ([0.9], [2], "ties"),
        ([3.1], [2], "ties"),
        ([3.3], [2], "loses"),
    ],
)
def test_the_verdict_is_strict_against_ourselves(ours, other, expected):
    def results(scale, is_error):
        for scores in (ours, other):
            yield Result("", {}, 1e-3, {1e-3: scale * np.array(scores)}, is_error)

    assert verdict(*results(1, True), 0.6) == expected
    # Accuracies are better the higher they are.
    assert verdict(*results(-1, False), 0.6) == expected


def commands():
    """The command lines of the example programs on the pages."""
    for page in program.pages():
        text = (ROOT / page).read_text().replace("\\\n", "")
        for module, words in re.findall(r"python -m (examples\.\w+) ([^`\n]+)", text):
            if "$" not in words:
                yield module, words


@pytest.mark.parametrize(("module", "words"), sorted(set(commands())))
def test_a_program_takes_its_command_line(module, words):
    arguments = shlex.split(words)
    if "--out" not in arguments and arguments[0] in ("train", "study"):
        arguments += ["--out", "run"]  # the text says what differs
    commands = importlib.import_module(f"{module}.__main__").COMMANDS
    parsed_only = {
        name: functools.wraps(command)(lambda *args, **options: None)
        for name, command in commands.items()
    }
    tyro.extras.subcommand_cli_from_dict(parsed_only, args=arguments)


# Published by others, or chosen by us: a threshold, a rate, a range of weights.
OTHERS = {
    "pinns": {"0.197", "0.0064", "0.0020", "5.6e-4", "0.1", "0.1.0"},
    "loss_terms": {
        *("0.0020", "0.003", "0.01", "1e-2", "0.1", "0.1.0", "0.5", "0.99", "1.2")
    },
    "images": set(),
    "choosing": {"0.1"},
    "faq": set(),
    "examples": set(),
}


@pytest.mark.parametrize("page", OTHERS)
def test_every_measured_number_in_the_text_says_where_it_is_from(page):
    text = (ROOT / f"docs/{page}.md").read_text()
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\(https?:[^)]*\)|`[^`]*`", "", text)
    text = INLINE.sub("", BLOCK.sub("", text))
    assert set(re.findall(r"\d[\d.]*e-\d+|\d+\.\d+(?:\.\d+)?", text)) <= OTHERS[page]

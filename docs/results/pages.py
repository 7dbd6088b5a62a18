"""Fills the places on a page that expressions describe."""

import difflib
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from docs.results.records import (
    LOST,
    ROOT,
    ResultError,
    Settings,
    best,
    content,
    number,
)
from docs.results.tables import pairs, table, where_it_wins

# No block holds another one's beginning.
BLOCK = re.compile(
    r"(?P<mark><!-- results: (?P<expression>[^\n]+?) -->\n)"
    r"(?:(?!<!-- results: ).)*?(?P<end><!-- end -->)",
    re.DOTALL,
)
WORD = r"[\w.,:%/-]+"
# The number stands right in front of the comment: one at the beginning of a line would
# be a block of its own and end the paragraph.
INLINE = re.compile(rf"{WORD}(?P<mark><!-- = (?P<expression>.+?) -->)")
MARK = re.compile(r"<!-- (?:results:|=) ")
LINK = re.compile(r"\]\((?!\w+:|#)([^)]+)\)")
FAILURES = (ResultError, NameError, SyntaxError, TypeError, LookupError, ValueError)

Names = Mapping[str, Callable[..., Any]]


# --- What expressions call ---


def score(file: str, **wanted: Any) -> str:
    """The median over the seeds of the runs with some settings, as `best` has them."""
    return str(best(file, **wanted).texts()["median"])


def ratios(cases: str, ours: Settings, over: Settings) -> list[float]:
    """Median over median of another method, in each of the cases of `tables.toml`."""
    return [a.median / b.median for a, b in pairs(cases, ours, over)]


def alarms(file: str, method: str | None = None) -> dict[str, int]:
    """How many seeds of a file are lost, and of how many the program says so.

    "unsatisfied" in the file is the largest of the terms over what the best constant
    field makes it.
    """
    found = {"seeds": 0, "lost": 0, "lost and silent": 0, "trained and alarmed": 0}
    for run in content(file)["runs"]:
        if method not in (None, run["method"]):
            continue
        for error, share in zip(run["errors"], run["unsatisfied"], strict=True):
            is_lost, is_said = (
                error is None or error > LOST,
                share is None or share >= 0.1,
            )
            found["seeds"] += 1
            found["lost"] += is_lost
            found["lost and silent"] += is_lost and not is_said
            found["trained and alarmed"] += is_said and not is_lost
    return found


def least(values: Iterable[float], figures: int = 2) -> str:
    """The smallest of several numbers, with so many digits."""
    return number(min(values), figures)


def most(values: Iterable[float], figures: int = 2) -> str:
    """The largest of several numbers, with so many digits."""
    return number(max(values), figures)


def source(path: str) -> str:
    """The whole of a Python file, given from the root."""
    return _block("python", _read(path))


def recipe(path: str, name: str) -> str:
    """The part of a Python file between `# recipe: NAME` and `# end recipe`."""
    _, start, rest = _read(path).partition(f"# recipe: {name}\n")
    part, end, _ = rest.partition("# end recipe\n")
    if not (start and end):
        raise ResultError(f"{path} has no recipe {name}")
    return _block("python", textwrap.dedent(part))


def source_diff(before: str, after: str) -> str:
    """The lines of two files that differ, with some around them."""
    old, new = (_read(path).splitlines() for path in (before, after))
    _, _, *hunks = difflib.unified_diff(old, new, lineterm="")
    return _block("diff", "\n".join(hunks))


def _read(path: str) -> str:
    if not (ROOT / path).is_file():
        raise ResultError(f"there is no file {path}")
    return (ROOT / path).read_text()


def _block(language: str, code: str) -> str:
    # Either would end the block, or begin another one, on the page.
    if "```" in code or "<!-- " in code:
        raise ResultError("code on a page must not hold ``` or an HTML comment")
    return f"```{language}\n{code.strip()}\n```"


NAMES: Names = {
    function.__name__: function
    for function in (
        *(table, where_it_wins, source, recipe, source_diff),
        *(score, ratios, least, most, best, content, alarms),
    )
}


# --- Pages ---


def pages(root: Path = ROOT) -> list[str]:
    """README.md, that of the examples, and the documentation's, from the root."""
    docs = sorted(f"docs/{path.name}" for path in (root / "docs").glob("*.md"))
    return ["README.md", "examples/README.md", *docs]


def filled(text: str, page: str, names: Names = NAMES) -> str:
    """The text of a page with every number as the records have it.

    Args:
      text: what the page holds now.
      page: its path from the root; the links of tables are made relative to it.
      names: the functions that expressions may call.

    Raises:
      ResultError: if an expression fails; the message is one line with its place.
    """

    def error(start: int, message: object) -> ResultError:
        line = text.count("\n", 0, start) + 1
        return ResultError(f"{page}:{line}: {str(message).rstrip('.')}.")

    def value(match: re.Match[str]) -> str:
        expression = match["expression"]
        try:
            return str(eval(expression, {"__builtins__": {}}, dict(names)))
        except FAILURES as failure:
            raise error(match.start("mark"), f"{expression}: {failure}") from None

    def number_and_mark(match: re.Match[str]) -> str:
        word = value(match)
        if not re.fullmatch(WORD, word):
            message = f"{match['expression']}: a number is one word, got {word!r}"
            raise error(match.start("mark"), message)
        return word + match["mark"]

    def block(match: re.Match[str]) -> str:
        new = value(match)
        # In code, indexing and a call look like a link.
        if not new.startswith("```"):
            folder = os.path.dirname(page) or "."
            new = LINK.sub(lambda m: f"]({os.path.relpath(m[1], folder)})", new)
        return f"{match['mark']}\n{new}\n{match['end']}"

    known = {m.start("mark") for form in (BLOCK, INLINE) for m in form.finditer(text)}
    for mark in MARK.finditer(text):
        if mark.start() not in known:
            message = "no <!-- end -->, or no number right in front of the comment"
            raise error(mark.start(), message)
    # The numbers first: they leave the lines where they are.
    text = INLINE.sub(number_and_mark, text)
    return BLOCK.sub(block, text)

"""Fills the places on a page that expressions describe."""

import dataclasses
import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from docs.results.records import ROOT, ResultError
from examples.common.runs import RunError

# No block holds another one's beginning.
BLOCK = re.compile(
    r"(?P<mark><!-- results: (?P<expression>[^\n]+?) -->)\n"
    r"(?P<found>(?:(?!<!-- results: ).)*?)<!-- end -->",
    re.DOTALL,
)
WORD = r"[\w.,:%/-]+"
# The number stands right in front of the comment: one at the beginning of a line would
# be a block of its own and end the paragraph.
INLINE = re.compile(rf"(?P<found>{WORD})(?P<mark><!-- = (?P<expression>.+?) -->)")
MARK = re.compile(r"<!-- (?:results:|=) ")
FENCED = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!\w+:|#)([^)]+)\)")
FAILURES = (
    *(ResultError, RunError, NameError, SyntaxError, TypeError, KeyError, ValueError),
)

Names = Mapping[str, Callable[..., Any]]


@dataclasses.dataclass(frozen=True)
class Place:
    """A piece of a page, and what its expression gives."""

    page: str
    line: int
    span: tuple[int, int]
    expression: str
    found: str
    expected: str

    def differences(self) -> Iterator[str]:
        """A message for each line that is not what the expression gives."""
        lines = itertools.zip_longest(
            self.found.splitlines(), self.expected.splitlines(), fillvalue=""
        )
        for line, (found, expected) in enumerate(lines, self.line):
            if found != expected:
                yield (
                    f"{self.page}:{line}: {self.expression}\n"
                    f"  found    {found}\n  expected {expected}"
                )


def pages(root: Path = ROOT) -> list[str]:
    """README.md, that of the examples, and the documentation's, from the root."""
    docs = sorted(f"docs/{path.name}" for path in (root / "docs").glob("*.md"))
    return ["README.md", "examples/README.md", *docs]


def places(text: str, page: str, names: Names) -> Iterator[Place]:
    """The places of a page that expressions describe, in order.

    Args:
      text: what the page holds now.
      page: its path from the root; the links of tables are made relative to it.
      names: the functions that expressions may call.

    Raises:
      ResultError: if an expression fails; the message is one line with its place.
    """
    matches = [*BLOCK.finditer(text), *INLINE.finditer(text)]
    _check_marks(text, page, {match.start("mark") for match in matches})
    for match in sorted(matches, key=re.Match.start):
        expected = _value(match, page, names)
        if match.re is BLOCK:
            expected = f"\n{_relative(expected, page)}\n"
        elif not re.fullmatch(WORD, expected):
            raise ResultError(
                f"{_place(match, page)}: a number is one word, got {expected!r}."
            )
        yield Place(
            page,
            _line(text, match.start("found")),
            match.span("found"),
            match["expression"],
            match["found"],
            expected,
        )


def filled(text: str, page: str, names: Names) -> str:
    """The text of a page with every number as the records have it."""
    parts, end = [], 0
    for place in places(text, page, names):
        parts += [text[end : place.span[0]], place.expected]
        end = place.span[1]
    return "".join([*parts, text[end:]])


def _check_marks(text: str, page: str, known: set[int]) -> None:
    """Raises ResultError at a comment that is neither a block's nor a number's."""
    for mark in MARK.finditer(text):
        if mark.start() not in known:
            raise ResultError(
                f"{page}:{_line(text, mark.start())}: there is no <!-- end -->, or no "
                "number right in front of the comment."
            )


def _value(match: re.Match[str], page: str, names: Names) -> str:
    try:
        return str(eval(match["expression"], {"__builtins__": {}}, dict(names)))
    except FAILURES as error:
        message = str(error).rstrip(".")
        raise ResultError(f"{_place(match, page)}: {message}.") from None


def _place(match: re.Match[str], page: str) -> str:
    line = _line(match.string, match.start("expression"))
    return f"{page}:{line}: {match['expression']}"


def _line(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1


def _relative(markdown: str, page: str) -> str:
    """Markdown whose links are as from the root, with links from a page."""
    folder = os.path.dirname(page) or "."

    def link(match: re.Match[str]) -> str:
        return f"]({os.path.relpath(match[1], folder)})"

    # Code is left as it is: indexing and a call look like a link.
    parts = FENCED.split(markdown)
    parts[::2] = [LINK.sub(link, text) for text in parts[::2]]
    return "".join(parts)

"""Code on the pages: files of the repository, parts of them, and what changes."""

import difflib
import textwrap

from docs.results.records import ROOT, ResultError


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

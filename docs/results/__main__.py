"""Writes measured numbers and code into the pages, or compares them."""

import argparse
import difflib
import sys

from docs import results
from docs.results.pages import filled, pages
from docs.results.records import ROOT, ResultError


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m docs.results",
        description=results.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="compare, do not write")
    check = parser.parse_args().check
    messages: list[str] = []
    for page in pages():
        found = (ROOT / page).read_text()
        try:
            expected = filled(found, page)
        except ResultError as error:
            messages.append(str(error))
            continue
        if not check:
            (ROOT / page).write_text(expected)
        elif found != expected:
            lines = (found.splitlines(), expected.splitlines())
            messages += difflib.unified_diff(*lines, page, page, lineterm="", n=0)
            messages.append("`make results` writes what the files hold.")
    print(*messages, sep="\n", end="\n" if messages else "", file=sys.stderr)
    return int(bool(messages))


if __name__ == "__main__":
    sys.exit(main())

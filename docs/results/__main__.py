"""What the pages take from other files: measured numbers, and code.

python -m docs.results            # writes them into docs/ and both README.md
python -m docs.results --check    # shows what they would change, and fails

A page holds the numbers and the code themselves, so that it can be read anywhere, and
says in comments where they come from. Between `<!-- results: EXPRESSION -->` and
`<!-- end -->` stands a table or a block of code, and in front of
`<!-- = EXPRESSION -->` a number. The expressions call the functions in `pages.NAMES`;
`tables.toml` says what each table shows.
"""

import argparse
import difflib
import sys

from docs.results.pages import filled, pages
from docs.results.records import ROOT, ResultError


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m docs.results",
        description=__doc__,
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

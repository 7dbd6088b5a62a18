"""Writes measured numbers and code into the pages, or compares them."""

import argparse
import sys

from docs import results
from docs.results.names import NAMES
from docs.results.pages import filled, pages, places
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
        path = ROOT / page
        text = path.read_text()
        try:
            if check:
                for place in places(text, page, NAMES):
                    messages += place.differences()
            else:
                path.write_text(filled(text, page, NAMES))
        except ResultError as error:
            messages.append(str(error))
    for message in messages:
        print(message, file=sys.stderr)
    if messages and check:
        print("`make results` writes what the files hold.", file=sys.stderr)
    return 1 if messages else 0


if __name__ == "__main__":
    sys.exit(main())

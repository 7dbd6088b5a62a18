"""The compatibility table of the docs, from the outcomes of the tests that show it.

python -m pytest --compatibility-report compatibility.json
python -m tests.compatibility_table compatibility.json            # writes the page
python -m tests.compatibility_table compatibility.json --check    # compares only
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "compatibility.md"
BEGIN, END = "<!-- compatibility: generated -->\n", "<!-- compatibility: end -->\n"

KINDS = {
    "wrapper": "Wrapper",
    "optimizer": "Base optimizer",
    "framework": "Framework",
    "parallelism": "Parallelism",
    "checkpoint": "Checkpoint",
    "accelerator": "Accelerator",
}


def table(outcomes: Iterable[dict[str, str]]) -> str:
    """A Markdown table of what is tested, by kind, with the names of the tests.

    The first test stands for all; cases of a parametrised test count as one, and those
    that were skipped show nothing.
    """
    tests: dict[tuple[str, str], set[str]] = {}
    for outcome in outcomes:
        if outcome["outcome"] == "skipped":
            continue
        if outcome["outcome"] != "passed":
            raise ValueError(f"{outcome['test']} has {outcome['outcome']}.")
        test = re.sub(r"\[.*", "", outcome["test"]).removeprefix("tests/")
        tests.setdefault((outcome["kind"], outcome["name"]), set()).add(test)
    lines = ["| | works with | tested by |", "| --- | --- | --- |"]
    for kind, title in KINDS.items():
        of_kind = sorted(name for k, name in tests if k == kind)
        for i, name in enumerate(of_kind):
            shown = f"`{name}`" if name.startswith("optax.") else name
            first, *others = sorted(tests[kind, name])
            more = f" and {len(others)} more" if others else ""
            lines.append(f"| {title if i == 0 else ''} | {shown} | `{first}`{more} |")
    return "\n".join(lines) + "\n"


def in_page(text: str, generated: str) -> str:
    """The page's text with the generated table between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"{PAGE.name} has no marks"
    return f"{before}{BEGIN}\n{generated}\n{END}{after}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path, help="what --compatibility-report wrote")
    parser.add_argument("--check", action="store_true", help="compare, do not write")
    arguments = parser.parse_args()
    expected = in_page(
        PAGE.read_text(), table(json.loads(arguments.report.read_text()))
    )
    if not arguments.check:
        PAGE.write_text(expected)
    elif PAGE.read_text() != expected:
        sys.exit(
            f"error: the table in {PAGE.name} is not that of the tests that ran; "
            "`make compatibility` writes it."
        )

"""What is said about a release in several places agrees."""

import re
from pathlib import Path

import stablegrad_optax as sg

ROOT = Path(__file__).parents[1]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
CITATION = (ROOT / "CITATION.cff").read_text()


def cited(key):
    """The value of a key at the top level of the citation file."""
    return re.search(rf"^{key}: (.+)$", CITATION, re.MULTILINE)[1]


def test_the_citation_names_this_version():
    assert cited("version") == sg.__version__


def test_the_changelog_s_newest_release_is_this_version_on_the_cited_date():
    released = re.findall(r"^## \[(\d.*)\] - (\S+)$", CHANGELOG, re.MULTILINE)
    assert released[0] == (sg.__version__, cited("date-released"))

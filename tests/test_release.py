"""What is said about a release in several places agrees."""

import re
from pathlib import Path

from packaging.version import Version

import stablegrad_optax as sg

ROOT = Path(__file__).parents[1]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
CITATION = (ROOT / "CITATION.cff").read_text()


def cited(key):
    """The value of a key at the top level of the citation file."""
    return re.search(rf"^{key}: (.+)$", CITATION, re.MULTILINE)[1]


def test_the_citation_names_the_newest_release():
    released = re.findall(r"^## \[(\d.*)\] - (\S+)$", CHANGELOG, re.MULTILINE)
    assert released[0] == (cited("version"), cited("date-released"))


def test_the_version_is_that_release_or_a_later_one_in_development():
    version, released = Version(sg.__version__), Version(cited("version"))
    assert version == released or (version.is_devrelease and version > released)

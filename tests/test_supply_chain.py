"""What the service is built from: every package pinned by version and hash, and its licence known.

.ci/check-wheel goes on from here: it installs just these, and asks them for their licences.
"""

import re
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
OURS = [
    each for each in map(Requirement, requires("recalcd") or ()) if not (each.marker and "extra" in str(each.marker))
]


def pins() -> dict[str, list[str]]:
    """Return the version and the hashes of every pinned package."""
    text = (ROOT / "systemd" / "constraints.txt").read_text("utf-8").replace("\\\n", " ")
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    return {line[0].partition("==")[0]: [line[0].partition("==")[2], *line[1:]] for line in lines}


def test_every_pin_has_hashes() -> None:
    for name, (_, *hashes) in pins().items():
        assert hashes, name
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", each) for each in hashes), name


@pytest.mark.parametrize("requirement", OURS, ids=lambda each: each.name)
def test_what_we_need_is_pinned_to_a_version_that_we_allow(requirement: Requirement) -> None:
    version, *_ = pins()[canonicalize_name(requirement.name)]
    assert version in requirement.specifier


def test_the_page_of_licences_names_every_pinned_package_and_no_other() -> None:
    page = (ROOT / "docs" / "licences.md").read_text("utf-8")
    assert re.findall(r"(?m)^\| ([a-z][a-z-]+) \| (?!licence)", page) == sorted(pins())

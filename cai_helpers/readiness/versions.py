"""Are the libraries those that requirements.txt asks for? The same list that installs them."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import InvalidVersion

import cai_helpers
from cai_helpers.manifest import library_versions
from cai_helpers.readiness.check import Check

_DISTRIBUTION = "cai-helpers"
_HOW = "Run the notebook's first cell, or install it: pip install --no-deps"


def requirements() -> list[Requirement]:
    """Of the checkout where this is one, else of the installed package."""
    file = Path(cai_helpers.__file__).parent.parent / "requirements.txt"
    if file.is_file():
        lines = (line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
        return [Requirement(line) for line in lines if line]
    found = map(Requirement, metadata.requires(_DISTRIBUTION) or [])
    return [requirement for requirement in found if requirement.marker is None]  # the others are of the extras


def versions() -> list[Check]:
    """A line for each library that results depend on, and for each other one that is missing or does not fit."""
    named = library_versions()
    checks = [_check(requirement) for requirement in requirements()]
    return [check for check in checks if check.name in named or not check.ok]


def _check(requirement: Requirement) -> Check:
    try:
        there = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Check(requirement.name, False, "missing", f'{_HOW} "{requirement}".')
    try:
        fits = requirement.specifier.contains(there, prereleases=True)
    except InvalidVersion:  # a build of one's own; it says nothing about itself
        fits = True
    return Check(requirement.name, fits, there, f'"{requirement}" is needed. {_HOW} "{requirement}"; then restart.')

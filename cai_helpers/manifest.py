"""What a complete stage leaves behind: what its result depended on, the hash of every output, and its report."""

from __future__ import annotations

import hashlib
import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from cai_helpers import __version__
from cai_helpers.store import read_json

_LIBRARIES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "huggingface_hub")
_PACKAGE = "cai_helpers"
SETTINGS_HASH = "cai_settings_sha256"  # in the metadata of an adapter's weights: hash_of_fingerprint of its training
_CONTENT = re.compile(r"\([0-9a-f]{12}\)")  # models.hub.identity writes it behind a folder's name
_PATH = ("/", "./", "../", "~")

Fingerprint = dict[str, Any]  # what a stage's result depends on: setting or "input …" → value or hash


class Manifest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    fingerprint: Fingerprint
    outputs: dict[str, str]  # path below the workspace → sha256
    report: dict[str, Any]
    title: str  # the report as it was shown: a page can show it without knowing the stage's class
    lines: list[tuple[str, str]]
    finished: str  # UTC
    versions: dict[str, str]  # of this package, and of the libraries


class WrittenByAnother(Exception):
    """A manifest, or the report in it, is not of the form that this version of the package reads."""


def read_manifest(path: Path, stage: str) -> Manifest | None:
    """The manifest of a complete stage; None: the stage is not complete.

    Raises:
        WrittenByAnother: another version of the package wrote it, in another form.
        CaiError: it is damaged; the message names the file.
    """
    if not path.exists():
        return None
    content = read_json(path, f"Delete that file: the {stage} stage then runs again and keeps the rows that are there.")
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        versions = content.get("versions") if isinstance(content, dict) else None
        raise WrittenByAnother(version_line(versions if isinstance(versions, dict) else {})) from error


def version_line(versions: dict[str, str]) -> str:
    """Who wrote a manifest of these versions that cannot be read."""
    writer = versions.get(_PACKAGE)
    if writer == __version__:
        return f"not written in the form of this version ({__version__})"
    return f"written by another version ({writer or 'one that left no number'}; this is {__version__})"


def plain(fingerprint: Fingerprint) -> Fingerprint:
    """The fingerprint as JSON gives it back, so that a stored and a fresh one compare equal."""
    return json.loads(json.dumps(fingerprint))


def hash_of_fingerprint(fingerprint: Fingerprint) -> str:
    """sha256 of what a result depended on."""
    return hashlib.sha256(json.dumps(plain(fingerprint), sort_keys=True).encode()).hexdigest()


def difference(before: Fingerprint, now: Fingerprint) -> list[str]:
    """Readable lines, one for each entry that differs."""
    return [
        f"{name} was {before.get(name)!r}, now {now.get(name)!r}"
        for name in sorted({*before, *now})
        if not _same(before.get(name), now.get(name))
    ]


def _same(before: Any, now: Any) -> bool:
    """Equal, or the same thing in another place: a folder by the hash beside its name, a file by its name, since the hash
    of what is in it is an entry of its own."""
    if before == now or not (isinstance(before, str) and isinstance(now, str)):
        return before == now
    first, second = _CONTENT.search(before), _CONTENT.search(now)
    if first and second:
        return (first[0], before[first.end() :]) == (second[0], now[second.end() :])
    return all(text.startswith(_PATH) for text in (before, now)) and Path(before).name == Path(now).name


def section(name: str, settings: BaseModel, exclude: set[str] | None = None) -> Fingerprint:
    """A settings section as fingerprint entries: {"train.beta": 0.1, …}."""
    return {f"{name}.{field}": value for field, value in settings.model_dump(mode="json", exclude=exclude).items()}


def library_versions() -> dict[str, str]:
    """Of the libraries a result can depend on; "missing" where one is not installed."""
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "missing"
    return versions


def all_versions() -> dict[str, str]:
    """Of this package and of the libraries."""
    return {_PACKAGE: __version__, **library_versions()}

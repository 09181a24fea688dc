"""An archive from elsewhere, opened with care: what is not plainly a file of a run is refused before anything is written."""

from __future__ import annotations

import hashlib
import re
import stat
import unicodedata
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from cai_helpers.artifacts.packing import NAME, SUFFIXES
from cai_helpers.artifacts.record import FORMAT, RECORD, ArchiveRecord
from cai_helpers.errors import CaiError
from cai_helpers.manifest import Manifest
from cai_helpers.settings import Settings, read_settings
from cai_helpers.store import is_row

_TOPS = frozenset(
    ["bakeoff", "calibration", "dpo_dataset", "evaluation", "logs", "manifests", "models", "pairs", "reports", "rounds"]
)
_MOST_FILES = 2_000
_MOST_RATIO = 200  # times as large as packed; what a run writes is 3 to 30 times
_SMALL = 16 * 1024**2  # bytes; below it a ratio says nothing
_ODD = re.compile(r'[\x00-\x1f<>:"|?*\\]|[ .]$')  # what Windows cannot write, or writes under another name
_ODDER = frozenset({"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))})
_DOWNLOAD = "Take it from where you got it once more; if it stays, do not use it."
_CHUNK = 1 << 20


class Hostile(CaiError):
    """An archive that is built to write where it should not, or more than it says."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(
            f"{path} is refused: {what}. Nothing was written.",
            "`cai export` writes no such archive. Do not use it, and ask whoever gave it to you.",
        )


class Archive:
    """Files of an archive by their names, without its top folder."""

    def __init__(self, path: Path, zipped: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]) -> None:
        self.path = path
        self._zipped = zipped
        self._members = members
        self.record = self._read_record()

    @property
    def names(self) -> list[str]:
        return sorted(self._members)

    def size(self, name: str) -> int:
        return self._members[name].file_size

    def pieces(self, name: str) -> Iterator[bytes]:
        """The content, piece by piece.

        Raises:
            CaiError: the bytes are damaged.
        """
        try:
            with self._zipped.open(self._members[name]) as member:
                while piece := member.read(_CHUNK):
                    yield piece
        except (zipfile.BadZipFile, EOFError, OSError, zipfile.zlib.error) as error:  # type: ignore[attr-defined]
            raise CaiError(f"{name} in {self.path} is damaged: {error}", _DOWNLOAD) from error

    def read(self, name: str) -> bytes:
        return b"".join(self.pieces(name))

    def sha256(self, name: str) -> str:
        digest = hashlib.sha256()
        for piece in self.pieces(name):
            digest.update(piece)
        return digest.hexdigest()

    def settings(self) -> Settings:
        return read_settings(self.read("settings.json"), f"settings.json in {self.path}")

    def manifests(self) -> dict[str, Manifest]:
        """What the stages left behind."""
        found = {}
        for name in self.names:
            if name.startswith("manifests/") and not name.endswith(".begun.json"):
                stage = PurePosixPath(name).stem
                try:
                    found[stage] = Manifest.model_validate_json(self.read(name))
                except ValidationError as error:
                    raise CaiError(
                        f"{name} in {self.path} has not the form of a stage's manifest.", _DOWNLOAD
                    ) from error
        return found

    def require_intact(self) -> None:
        """
        Raises:
            CaiError: a file is missing, is one too many, or is not what manifest.json says; the first one is named.
        """
        if (difference := self.first_difference()) is not None:
            raise CaiError(f"{self.path}: {difference}.", _DOWNLOAD)

    def first_difference(self) -> str | None:
        """How the files differ from manifest.json; None: in nothing."""
        if self.record.own_hash() != self.record.sha256:
            return f"{RECORD} was changed after it was written"
        packed = set(self._members) - {RECORD}
        if missing := sorted(self.record.files.keys() - packed):
            return f"{missing[0]} is missing"
        if extra := sorted(packed - self.record.files.keys()):
            return f"{extra[0]} is not in {RECORD}"
        for name, file in sorted(self.record.files.items()):
            if self.size(name) != file.size:
                return f"{name} has {self.size(name)} bytes, and {RECORD} says {file.size}"
            if self.sha256(name) != file.sha256:
                return f"{name} is not what was packed: its hash differs"
        return None

    def _read_record(self) -> ArchiveRecord:
        if RECORD not in self._members:
            raise CaiError(
                f"{self.path} holds no {NAME}/{RECORD}.",
                "Give an archive that `cai export` of this version wrote; an older workspace can be exported again.",
            )
        content = self.read(RECORD)
        try:
            record = ArchiveRecord.model_validate_json(content)
        except ValidationError as error:
            form = "" if is_row(content) else ": it is no JSON"
            raise CaiError(f"{RECORD} in {self.path} cannot be read{form}.", _DOWNLOAD) from error
        if record.format != FORMAT:
            raise CaiError(
                f"{self.path} has the form {record.format}; this version reads {FORMAT}.",
                "Install a newer cai-helpers.",
            )
        return record


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """
    Raises:
        Hostile: a name, a kind or a size that `cai export` never writes.
        CaiError: it is no archive of a run.
    """
    try:
        zipped = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise CaiError(f"{path} cannot be opened as a zip: {error}", "Give the zip that `cai export` wrote.") from error
    with zipped:
        yield Archive(path, zipped, _members(path, zipped))


def _members(path: Path, zipped: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    entries = zipped.infolist()
    if len(entries) > _MOST_FILES:
        raise Hostile(path, f"it holds {len(entries)} files, and a run has at most {_MOST_FILES}")
    _refuse_bomb(path, entries)
    members: dict[str, zipfile.ZipInfo] = {}
    seen: dict[str, str] = {}
    for entry in entries:
        name = _plain_name(path, entry)
        key = unicodedata.normalize("NFC", name).casefold()
        if key in seen:
            other = "twice" if seen[key] == name else f"beside {seen[key]}, which is the same file on many systems"
            raise Hostile(path, f"it holds {name} {other}")
        seen[key] = name
        if not entry.is_dir():
            members[name] = entry
    for name in members:
        for parent in PurePosixPath(name).parents:
            if str(parent) in members:
                raise Hostile(path, f"{parent} is a file and a folder")
    return {_of_a_run(path, name): entry for name, entry in members.items()}


def _refuse_bomb(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    packed, whole = sum(entry.compress_size for entry in entries), sum(entry.file_size for entry in entries)
    if packed > path.stat().st_size:
        raise Hostile(path, "its files overlap in the archive, as those of a bomb do")
    for entry in entries:
        if entry.file_size > _SMALL and entry.file_size > _MOST_RATIO * max(1, entry.compress_size):
            raise Hostile(path, f"{entry.filename!r} unpacks to {entry.file_size} bytes of {entry.compress_size}")
    if whole > _SMALL and whole > _MOST_RATIO * max(1, packed):
        raise Hostile(path, f"it unpacks to {whole} bytes of {packed}")


def _plain_name(path: Path, entry: zipfile.ZipInfo) -> str:
    """The member's name, if it is a relative one of ordinary parts, and the member is a file or a folder."""
    raw = entry.orig_filename
    name = raw.removesuffix("/")
    parts = name.split("/")
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        raise Hostile(path, f"{raw!r} is an absolute path")
    if ".." in parts:
        raise Hostile(path, f"{raw!r} leads out of its folder")
    if any(part in ("", ".") or _ODD.search(part) or part.split(".")[0].lower() in _ODDER for part in parts):
        raise Hostile(path, f"{raw!r} is no name that every system can write")
    mode = entry.external_attr >> 16 if entry.create_system == 3 else 0
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise Hostile(path, f"{raw!r} is a link or a device")
    if entry.flag_bits & 0x1:
        raise Hostile(path, f"{raw!r} is encrypted")
    return name


def _of_a_run(path: Path, name: str) -> str:
    """The name below the top folder, if a run has such a file."""
    top, _, below = name.partition("/")
    if top != NAME or not below:
        raise Hostile(path, f"{name!r} does not lie in {NAME}/")
    parts = below.split("/")
    if PurePosixPath(below).suffix not in SUFFIXES or (len(parts) > 1 and parts[0] not in _TOPS):
        raise Hostile(path, f"{name!r} is nothing that a run leaves behind")
    return below

"""What of a run is kept, and the list of it: which bytes lie at the place, by hash."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pydantic import ValidationError

from cai_helpers import lock
from cai_helpers.schema import Record
from cai_helpers.store import read_json, write_json
from cai_helpers.training.watch.checkpoints import SEAL

LIST = "kept.json"  # at the place
MARK = "kept_at.json"  # in the run's folder: what this machine kept last, and where
_BLOCK = 1 << 20


class Content(Record):
    """What a file held when it was kept."""

    bytes: int
    sha256: str
    rows: int | None = None  # of a .jsonl


class Listing(Record):
    """What lies at a place. While files are being replaced, a file may be the old one or the new one: both are named."""

    token: str  # another one each time something is kept
    saved: str  # UTC
    finished: bool  # False: files are being replaced, or a kill ended that
    files: dict[str, list[Content]]  # path in the run's folder → what it may hold, the newest last

    def holds(self, name: str, found: Content) -> bool:
        return any(found.sha256 == content.sha256 for content in self.files.get(name, []))


class Mark(Record):
    """What this machine knows of the place: the list it wrote last, and those it tried to write since."""

    where: str
    tokens: list[str]
    listing: Listing


class Part(NamedTuple):
    """A file of the run as it is now; rows are taken up to the last whole one."""

    path: Path
    content: Content


def read_mark(root: Path) -> Mark | None:
    file = root / MARK
    if not file.exists():
        return None
    try:
        return Mark.model_validate(read_json(file, ""))
    except (ValidationError, ValueError):  # of another version
        return None


def write_mark(root: Path, mark: Mark) -> None:
    write_json(root / MARK, mark.model_dump(mode="json"))


class Scanner:
    """Reads what of a run's folder is kept; a file that has not changed since the last time is not read again."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[str, tuple[tuple[int, int, int], Content]] = {}

    def parts(self) -> dict[str, Part]:
        found: dict[str, Part] = {}
        for path in belonging(self._root):
            name = path.relative_to(self._root).as_posix()
            try:
                status = path.stat()
                state = (status.st_size, status.st_mtime_ns, status.st_ino)
                if name not in self._known or self._known[name][0] != state:
                    self._known[name] = (state, content_of(path))
            except FileNotFoundError:  # a checkpoint that was rotated away meanwhile
                continue
            found[name] = Part(path, self._known[name][1])
        return found


def belonging(root: Path) -> Iterator[Path]:
    """The files of a run that another machine needs to go on.

    Not those of this process alone (lock, mark, half-written files), and no checkpoint before it is sealed: what could not
    be resumed from only costs time to copy.
    """
    for folder, names, files in os.walk(root):
        names[:] = sorted(name for name in names if _is_whole(Path(folder) / name))
        for name in sorted(files):
            if name not in (lock.FILE, MARK, LIST) and not name.endswith((".tmp", ".partial")):
                yield Path(folder) / name


def _is_whole(folder: Path) -> bool:
    return not folder.name.startswith("checkpoint-") or (folder / SEAL).exists()


def content_of(path: Path) -> Content:
    """Size, hash and rows; of a .jsonl, up to its last newline, for the row behind it is being written."""
    is_rows = path.suffix == ".jsonl"
    digest, size, rows, tail = hashlib.sha256(), 0, 0, b""
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            if is_rows:
                whole, newline, tail = (tail + block).rpartition(b"\n")
                block = whole + newline
                rows += block.count(b"\n")
            digest.update(block)
            size += len(block)
    return Content(bytes=size, sha256=digest.hexdigest(), rows=rows if is_rows else None)


def copy(part: Part, target: Path) -> bool:
    """Write a part under a temporary name, read it back, and rename it; False: it is not any more what was read before.

    Raises:
        OSError: the disk refuses, or gives back something else than was written.
    """
    temporary = target.with_name(target.name + ".partial")
    try:
        source = part.path.open("rb")
    except FileNotFoundError:  # rotated away, or started over, meanwhile
        return False
    try:
        with source:
            same = _write(source, temporary, part.content)
        if same:
            temporary.replace(target)
        return same
    finally:
        with contextlib.suppress(OSError):  # of a disk that is full, nothing half stays
            temporary.unlink(missing_ok=True)


def _write(source: BinaryIO, file: Path, content: Content) -> bool:
    digest, left = hashlib.sha256(), content.bytes
    with file.open("wb") as sink:
        while left and (block := source.read(min(left, _BLOCK))):
            sink.write(block)
            digest.update(block)
            left -= len(block)
        sink.flush()
        os.fsync(sink.fileno())
    if left or digest.hexdigest() != content.sha256:
        return False
    with file.open("rb") as written:
        if hashlib.file_digest(written, "sha256").hexdigest() != content.sha256:
            raise OSError(f"{file.stem} is not what was written when it is read back")
    return True

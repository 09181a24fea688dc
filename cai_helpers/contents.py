"""What a file or folder holds, by hash: every byte is seen, and within a process no byte is read twice for it."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import NamedTuple

_SETTLED = 2 * 10**9  # nanoseconds since the last change from which on the next change shows in the file's times


class _State(NamedTuple):
    """What a file looks like from outside. Another content shows in one of these, once the clock has ticked."""

    path: str
    size: int  # bytes
    inode: int
    modified: int  # nanoseconds
    changed: int  # nanoseconds; unlike `modified`, a copy or a restored backup cannot carry it over


_KNOWN: dict[_State, str] = {}  # over the life of the process


def file_hash(path: Path) -> str | None:
    """sha256 of a file; of a folder, over the names and hashes of the files below it; None if there is none."""
    if path.is_dir():
        return hash_of_hashes(hashes_below(path))
    return _hash_of_file(path) if path.is_file() else None


def hash_of_hashes(hashes: dict[str, str]) -> str:
    """What `file_hash` says of a folder that holds files of these hashes, by their paths in there."""
    digest = hashlib.sha256()
    for name in sorted(hashes, key=lambda name: Path(name)):
        digest.update(f"{name}\0{hashes[name]}\0".encode())
    return digest.hexdigest()


def hashes_below(folder: Path) -> dict[str, str]:
    """sha256 of each file below `folder`, by its path in there."""
    files = sorted(item for item in folder.rglob("*") if item.is_file())
    return {file.relative_to(folder).as_posix(): _hash_of_file(file) for file in files}


def _hash_of_file(path: Path) -> str:
    state = _state(path)
    if state in _KNOWN:
        return _KNOWN[state]
    began = time.time_ns()
    with path.open("rb") as file:
        digest = hashlib.file_digest(
            file, "sha256"
        ).hexdigest()  # reads in pieces: a model's weights are larger than memory
    # a file's times tick in milliseconds, on some drives in seconds: what was written just now may be written again
    # without a trace
    if began - max(state.modified, state.changed) > _SETTLED and _state(path) == state:
        _KNOWN[state] = digest
    return digest


def _state(path: Path) -> _State:
    status = path.stat()
    return _State(os.path.abspath(path), status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)

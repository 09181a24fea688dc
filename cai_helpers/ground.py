"""The folder of a run stays the one it was when it was opened: where it vanishes, nothing is written in its place.

A drive that is unmounted leaves its mount point behind, an empty folder on another disk. Making the run's folders there
again would write hours of work to where nobody looks for them. So a root that this process has opened is known by
device and inode, and whatever is written below it is written only while it is there. A root that comes back with
another inode (a drive mounted again) is another folder to a running process; a new process opens it as it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from cai_helpers.errors import CaiError, WorkspaceVanished


class _Identity(NamedTuple):
    device: int
    inode: int


_OPENED: dict[Path, _Identity] = {}  # roots by absolute path, over the life of the process
_CLOSED: dict[Path, CaiError] = {}  # roots that must not be written to any more, and why


def open_root(root: Path) -> list[Path]:
    """Make `root` if this process meets it for the first time, and know it from then on; the folders that were made.

    Raises:
        WorkspaceVanished: it was opened before and is not the same folder any more.
    """
    absolute = _absolute(root)
    if absolute in _OPENED:
        require(root)
        return []
    missing = [folder for folder in (absolute, *absolute.parents) if not folder.exists()]
    absolute.mkdir(parents=True, exist_ok=True)
    _OPENED[absolute] = _identity(absolute)
    return missing


def forget(root: Path) -> None:
    """The next `open_root` takes what it finds. For a run that begins anew, after its drive was mounted."""
    _OPENED.pop(_absolute(root), None)
    _CLOSED.pop(_absolute(root), None)


def close(root: Path, reason: CaiError) -> None:
    """Whoever wants to write below `root` gets `reason` from now on."""
    _CLOSED[_absolute(root)] = reason


def reopen(root: Path) -> None:
    """Undo `close`."""
    _CLOSED.pop(_absolute(root), None)


def require(path: Path) -> None:
    """Return if every opened root that `path` is below is what it was, or if there is none.

    Raises:
        WorkspaceVanished: one is not there, or is another folder.
        CaiError: one was closed; the reason that `close` was given.
    """
    for root in _roots_above(path):
        if root in _CLOSED:
            raise _CLOSED[root]
        try:
            same = _identity(root) == _OPENED[root]
        except OSError as error:  # FileNotFoundError; "transport endpoint is not connected" of a drive that hangs
            raise WorkspaceVanished(str(root), f"it cannot be reached ({error.strerror})") from error
        if not same:
            raise WorkspaceVanished(str(root), "another folder has its name now")


def is_standing(root: Path) -> bool:
    """Whether an opened root is what it was."""
    try:
        return _identity(_absolute(root)) == _OPENED[_absolute(root)]
    except OSError:
        return False


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around whatever writes to `path`: its root is looked at before and after, and when the system refuses."""
    require(path)
    try:
        yield
    finally:
        require(path)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, but never an opened root."""
    require(path)
    absolute, root = _absolute(path), next(_roots_above(path), None)
    if root is None:
        absolute.mkdir(parents=True, exist_ok=True)
        return
    parts = absolute.relative_to(root).parts
    with writing(path):
        for count in range(1, len(parts) + 1):
            root.joinpath(*parts[:count]).mkdir(exist_ok=True)


def _roots_above(path: Path) -> Iterator[Path]:
    """Opened roots that `path` is in, or is, the innermost first."""
    absolute = _absolute(path)
    return (folder for folder in (absolute, *absolute.parents) if folder in _OPENED)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # not resolved: a link to a drive is what the person named


def _identity(root: Path) -> _Identity:
    status = root.stat()
    return _Identity(status.st_dev, status.st_ino)

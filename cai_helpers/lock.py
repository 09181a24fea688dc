"""One process at a time writes to a workspace: the second is told who has it, and the place of a dead one is taken over.

The lock is a file that can be created only once (O_CREAT | O_EXCL), since a mounted Drive knows neither flock nor hard
links. It names its owner. Whether an owner on this machine lives is asked of the system: its process is there and began
when the owner did, for numbers of processes come again. Of an owner on another machine only a sign of life is seen, the
lock's file time, which it renews every BEAT seconds; after STALE seconds without one it counts as dead.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from cai_helpers import ground
from cai_helpers.errors import CaiError, WorkspaceInUse

FILE = "lock.json"
BEAT = 15.0  # seconds
STALE = 300.0  # seconds: many beats, for a synchronised drive shows them late
_TRIES = 5
_TRIES_TO_SEE = 40  # twice a second


class Owner(BaseModel):
    model_config = ConfigDict(frozen=True)

    host: str
    machine: str  # what gives numbers to processes: the same boot and, in containers, the same name space
    pid: int
    began: str  # when the process did, as the system counts it
    since: str  # UTC, when it took the lock
    token: str  # another one each time

    def line(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


class _Lock:
    """A lock that this process has, and how often: stages call stages."""

    def __init__(self, root: Path, owner: Owner) -> None:
        self.owner, self.depth = owner, 0
        self._root, self._file = root, root / FILE
        self._ended = threading.Event()
        threading.Thread(target=self._show_life, name="workspace-lock", daemon=True).start()

    def release(self) -> None:
        self._ended.set()
        if _read(self._file) == self.owner:  # not what another one wrote, nor in a folder that is another one now
            self._file.unlink(missing_ok=True)

    def _show_life(self) -> None:
        while not self._ended.wait(BEAT):
            with contextlib.suppress(OSError):  # a folder that has vanished is noticed by whoever writes next
                other = _read(self._file)
                if other is not None and other != self.owner:  # this machine slept, and was taken for dead
                    ground.close(self._root, _in_use(self._root, other))
                    return
                os.utime(self._file)


_HELD: dict[Path, _Lock] = {}
_ALONE = threading.RLock()  # of the threads of this process


@contextlib.contextmanager
def hold(root: Path) -> Iterator[Owner | None]:
    """Have the lock of `root` for a while; gives the dead owner it was taken from, if any. Within a process it nests.

    Raises:
        WorkspaceInUse: another process has it; the message says which one, and since when.
    """
    name = Path(os.path.abspath(root))
    with _ALONE:
        made, dead = ground.open_root(name), None
        if name not in _HELD or _HELD[name].owner.pid != os.getpid():  # another number: this is a fork
            owner, dead = _take(name)
            _HELD[name] = _Lock(name, owner)
        lock = _HELD[name]
        lock.depth += 1
    try:
        yield dead
    finally:
        with _ALONE:
            lock.depth -= 1
            if lock.depth == 0:
                del _HELD[name]
                lock.release()
                ground.reopen(name)
                if ground.is_standing(name):  # an empty folder in its place, a mount point say, is not ours
                    _remove_empty(made)


def require_seen(root: Path) -> None:
    """Of a process that shares the lock of another, the main one of its launch: that it sees the same folder.

    Raises:
        CaiError: no lock is in it, so it lies on another disk.
    """
    for _ in range(_TRIES_TO_SEE):
        if (root / FILE).exists():
            return
        time.sleep(0.5)  # a network drive shows new files late
    raise CaiError(
        f"{root} on {platform.node()} is not the folder that the main process of this launch writes to.",
        "Give a --workspace on a drive that all machines of the launch share.",
    )


def _take(root: Path) -> tuple[Owner, Owner | None]:
    """This process as the owner, and the dead one that was, if any."""
    file, dead = root / FILE, None
    own = Owner(
        host=platform.node(),
        machine=_machine(),
        pid=os.getpid(),
        began=_began(os.getpid()) or "",
        since=f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
        token=secrets.token_hex(8),
    )
    for _ in range(_TRIES):
        if _create(file, own):
            return own, dead
        other = _read_when_written(file)
        if other is None and _silence(file) is None:  # released meanwhile
            continue
        if not _is_dead(other, file):
            raise _in_use(root, other)
        dead = _remove_dead(file, other) or dead
    raise _in_use(root, _read(file))


def _create(file: Path, own: Owner) -> bool:
    """Whether the lock is ours now. Read back: of two machines that create it, a synchronised drive keeps one."""
    try:
        descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
        handle.write(own.model_dump_json(indent=2) + "\n")
        handle.flush()
        os.fsync(handle.fileno())
    return _read(file) == own


def _remove_dead(file: Path, dead: Owner | None) -> Owner | None:
    """Clear the place of a dead owner; `dead` if that was done here.

    Renamed first, which only one can do: of two that found it dead, the slower one could delete the quicker one's lock.
    """
    aside = file.with_name(f"lock-{secrets.token_hex(8)}.json")
    try:
        file.rename(aside)
    except FileNotFoundError:
        return None
    if _read(aside) != dead:  # somebody was quicker, and this is the new lock: it goes back
        if not file.exists():
            aside.rename(file)
        return None
    aside.unlink()
    return dead


def _read(file: Path) -> Owner | None:
    """The owner; None: there is no lock, or nothing that can be read in it."""
    try:
        return Owner.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError):
        return None


def _read_when_written(file: Path) -> Owner | None:
    """As `_read`, with a moment's patience: a lock is empty between its creation and its first line."""
    for _ in range(10):
        if (owner := _read(file)) is not None or not file.exists():
            return owner
        time.sleep(0.1)
    return None


def _is_dead(owner: Owner | None, file: Path) -> bool:
    if owner is not None and owner.machine == _machine():
        # our own: it stayed in a folder that vanished while it was held, and has come back
        return owner.pid == os.getpid() or _began(owner.pid) != owner.began
    return (_silence(file) or 0.0) > STALE


def _silence(file: Path) -> float | None:
    """Seconds since the owner's last sign of life; None: the lock is not there."""
    try:
        return time.time() - file.stat().st_mtime
    except FileNotFoundError:
        return None


def _in_use(root: Path, owner: Owner | None) -> WorkspaceInUse:
    who = "a process that has not written its name yet" if owner is None else owner.line()
    patience = "wait until that one has ended, stop it, or give another --workspace."
    if owner is None or owner.machine != _machine():
        quiet = _silence(root / FILE) or 0.0
        patience += (
            f" If it is gone (its last sign of life came {quiet:.0f} s ago), run this again once {STALE / 60:.0f} minutes "
            "have passed without one."
        )
    return WorkspaceInUse(
        f"Another process is writing to {root}: {who}.", f"Two would spoil each other's files: {patience}"
    )


def _machine() -> str:
    """What gives numbers to processes. Names of machines do not do: many containers have the same one."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{platform.node()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return platform.node()


def _began(pid: int) -> str | None:
    """When a process of this machine began, as the system counts it; None: there is no such process, or it has ended."""
    stat = Path("/proc/self/stat")
    if not stat.exists():  # not Linux
        import psutil

        try:
            return str(psutil.Process(pid).create_time())
        except psutil.NoSuchProcess:
            return None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]  # state; start in clock ticks after boot: proc(5)


def _remove_empty(folders: list[Path]) -> None:
    """Folders that a stage made and wrote nothing to, as when its input was missing."""
    for folder in folders:  # the innermost first
        try:
            folder.rmdir()
        except OSError:  # not empty, or gone
            return
        ground.forget(folder)

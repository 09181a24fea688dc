"""What the system and the libraries raise → an error for the person who gets it. One table, for commands and notebooks.

A stage says itself what it knows better: which file, which line, what was kept. What is left is told here.
"""

from __future__ import annotations

import errno
import os
import re
from typing import NamedTuple

from cai_helpers.errors import CaiError, StoppedByHand

_GO_ON = "run the same again: it goes on from what is on disk"


class _Told(NamedTuple):
    what: str
    todo: str


_NO_SPACE = _Told(
    "there is no space left on its disk", f"Free some space (`df -h` shows how much there is), then {_GO_ON}."
)
_NOT_ALLOWED = _Told(
    "this account may not do that there", f"Change who may read and write it, or take another folder, then {_GO_ON}."
)
_GONE = _Told(
    "its drive does not answer any more",
    f"Mount the drive again (in Colab: restart the runtime and run the notebook from the top), then {_GO_ON}.",
)
_OF_SYSTEM = {
    errno.ENOSPC: _NO_SPACE,
    errno.EDQUOT: _Told("the quota of its disk is used up", f"Free some space there, then {_GO_ON}."),
    errno.EROFS: _Told("its disk is read-only", f"Mount it for writing, or take another --workspace, then {_GO_ON}."),
    errno.EACCES: _NOT_ALLOWED,
    errno.EPERM: _NOT_ALLOWED,
    errno.EIO: _GONE,
    errno.ESTALE: _GONE,
    errno.ENOTCONN: _GONE,
    errno.ENODEV: _GONE,
    errno.EMFILE: _Told("too many files are open", f"Raise the limit (`ulimit -n 4096`), then {_GO_ON}."),
    errno.ENAMETOOLONG: _Told("its name is too long for this disk", "Take a shorter name."),
    errno.ENOENT: _Told("there is no such file or folder", f"Check the path; if something was moved, put it back, then {_GO_ON}."),
    errno.EISDIR: _Told("it is a folder, and a file was expected", "Check the path."),
    errno.ENOTDIR: _Told("a part of its path is a file, and a folder was expected", "Check the path."),
    errno.EEXIST: _Told("something else has that name already", "Move it away, or take another name."),
}  # fmt: skip


def told(error: BaseException) -> CaiError | None:
    """The error to show instead of `error`; None: it is of no kind that is known, most likely a fault of this package."""
    if isinstance(error, CaiError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return StoppedByHand("Stopped by hand.", "What is on disk stays: run the same again to go on.")
    if isinstance(error, OSError) and error.errno is not None:
        return _of_system(error)
    if (number := number_of_system(error)) is not None:
        return _of_system(OSError(number, os.strerror(number)))
    if isinstance(error, MemoryError):
        return CaiError(
            "This machine's memory is full.",
            f"Close what else uses it, or set smaller batches (generate.batch_size, score.batch_size), then {_GO_ON}.",
        )
    if type(error).__name__ == "OutOfMemoryError":  # torch's, by name: nothing here needs torch
        return CaiError(
            f"The GPU's memory is full: {_first_line(error)}",
            f"Close other notebooks that use this GPU (Runtime → Manage sessions), then {_GO_ON}. `cai preflight` says what "
            "fits.",
        )
    if isinstance(error, ImportError):
        return CaiError(
            f"A library is missing or does not fit the others: {_first_line(error)}",
            "Install the versions of requirements.txt; in Colab run the notebook's first cell, then restart the runtime.",
        )
    return None


def number_of_system(error: BaseException) -> int | None:
    """errno of what safetensors says in words of its own: "I/O error: No space left on device (os error 28)"."""
    found = re.search(r"\(os error (\d+)\)", str(error)) if type(error).__name__ == "SafetensorError" else None
    return int(found[1]) if found else None


def unexpected(error: BaseException) -> CaiError:
    """What `told` does not know, in the same two lines; the workspace notes on the error where it kept the traceback."""
    kept = " ".join(getattr(error, "__notes__", ["--debug shows the traceback."]))
    return CaiError(
        f"Unexpected: {type(error).__name__}: {_first_line(error)}",
        f"This is most likely a fault of cai-helpers: please report it. {kept} What is on disk stays.",
    )


def _of_system(error: OSError) -> CaiError:
    reason = _OF_SYSTEM.get(error.errno or 0)
    what, todo = reason or (f"the system says: {os.strerror(error.errno or 0)}", f"Mend that, then {_GO_ON}.")
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    where = " → ".join(names) if names else "A file or connection"
    return CaiError(f"{where}: {what}.", todo)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "it said nothing more")

"""One thing that a run needs: ok, or what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from cai_helpers.errors import CaiError, StoppedByHand


class Check(NamedTuple):
    name: str
    ok: bool
    found: str
    todo: str = ""  # empty when ok

    def line(self) -> str:
        mark = "ok  " if self.ok else "TODO"
        return f"{mark}  {self.name}: {self.found}" + ("" if self.ok else f"\n      → {self.todo}")


def tried(name: str, attempt: Callable[[], str]) -> Check:
    """What `attempt` says, or the CaiError that it raises, as a line of the list."""
    try:
        return Check(name, True, attempt())
    except CaiError as error:
        return Check(name, False, error.what, error.todo)


def require(checks: list[Check]) -> None:
    """
    Raises:
        CaiError: not all are ok; it names those that are not, and what to do about each.
    """
    missing = [check for check in checks if not check.ok]
    if not missing:
        return
    raise CaiError(
        "Not ready, so nothing was started. "
        + " ".join(_sentence(f"{check.name}: {check.found}") for check in missing),
        " ".join(_sentence(check.todo) for check in missing),
    )


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


@contextmanager
def interruptible() -> Iterator[None]:
    """Around what is tried: Ctrl-C is answered with a sentence.

    Raises:
        StoppedByHand: it was pressed.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise StoppedByHand(
            "Stopped by hand while it was tried whether all is ready; nothing was started.",
            "Run the same command or cell again.",
        ) from None

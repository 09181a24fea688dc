"""`python -m cai_helpers`, and what the command `cai` begins with: signals end it in words from the first import on."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType


def main() -> None:
    """Run `cai`. SIGTERM, with which machines say that they are about to go, stops it as Ctrl-C does: code 130."""
    signal.signal(signal.SIGTERM, _interrupt)
    sys.unraisablehook = _not_lost
    try:
        from cai_helpers.cli import app

        app()
    except KeyboardInterrupt:  # before or after the command's own words for it
        print("Stopped by hand.\nWhat is on disk stays: run the same again to go on.", file=sys.stderr)
        sys.exit(130)


def _not_lost(ignored: sys.UnraisableHookArgs) -> None:
    """Python drops what a finalizer raises: a stop that arrives while one runs would be shown and forgotten. It is sent again."""
    if issubclass(ignored.exc_type, KeyboardInterrupt):
        again = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM))  # whose handler is ours
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(ignored)


def _interrupt(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()

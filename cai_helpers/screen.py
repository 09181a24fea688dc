"""What a person sees while a stage works: lines, and bars that renew themselves. A notebook puts its own in their place."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from tqdm.std import tqdm

Bar = tqdm  # whichever kind is drawn


class Screen(NamedTuple):
    """How bars are drawn, and lines written without tearing one."""

    bar: type[Bar]
    write: Callable[[str], None]


TERMINAL = Screen(tqdm, tqdm.write)
_now = [TERMINAL]


def show_on(screen: Screen) -> None:
    """Draw and write there from now on."""
    _now[0] = screen


def bar(total: int, what: str, unit: str, *, initial: int = 0, stays: bool = True, hidden: bool = False) -> Bar:
    """A bar of `total` units of work with its rate and the time that is left.

    stays: in a terminal, once it is done. hidden: it counts, and is never drawn.
    """
    delay = math.inf if hidden else 0
    return _now[0].bar(total=total, initial=initial, desc=what, unit=unit, leave=stays, delay=delay)


def write(line: str) -> None:
    """One line, above whatever bar there is."""
    _now[0].write(line)


def duration(seconds: float) -> str:
    """ "45 s", "14 min" or "2.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

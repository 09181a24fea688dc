"""Before anything is answered: what a verdict can show with this many prompts, and how many the margin asks for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from scipy import optimize, special

from cai_helpers.evaluation.verdict import LEVEL, NON_INFERIOR
from cai_helpers.schema import BENIGN, HARMFUL

POWER = 0.8  # how often a difference that is there is to be found


def least_win_rate(prompts: int) -> float | None:
    """The smallest true win rate that so many prompts show to lie above a half, 4 times of 5; None: too few for any.

    The normal approximation of a share without ties (Fleiss, Levin & Paik 2003, section 2.5): 100 prompts show 64 %.
    """
    z, power = special.ndtri(1 - LEVEL), special.ndtri(POWER)

    def surplus(share: float) -> float:
        return float((share - 0.5) * math.sqrt(prompts) - z / 2 - power * math.sqrt(share * (1 - share)))

    if prompts < 1 or surplus(1.0) <= 0:
        return None
    return float(optimize.brentq(surplus, 0.5, 1.0))


def prompts_for_margin(margin: float) -> int:
    """So many benign prompts show "not inferior by `margin`" 4 times of 5, where the truth is a half and nothing ties."""
    z = special.ndtri(1 - NON_INFERIOR) + special.ndtri(POWER)
    return math.ceil((z / (2 * margin)) ** 2)


def power_line(categories: Sequence[str], margin: float) -> str:
    """What these held-out prompts can show, in one sentence a side."""
    counts = Counter(categories)
    said = []
    for name, number in (("harmful", counts[HARMFUL]), ("benign", counts[BENIGN])):
        least = least_win_rate(number)
        shows = f"a true win rate of {100 * least:.0f} % or more" if least else "no win rate"
        said.append(f"{number} {name} prompts show {shows} to be above 50 % (power 80 %)")
    needed = prompts_for_margin(margin)
    enough = "enough" if counts[BENIGN] >= needed else "more than there are"
    said.append(
        f"that benign requests lose no more than {100 * margin:.0f} points takes {needed} benign prompts at a true 50 % "
        f"({enough})"
    )
    return "; ".join(said)

"""How sure a figure is: 95 % intervals for shares, means, medians and paired differences."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from cai_helpers.schema import Record

CONFIDENCE = 0.95
_Z = stats.norm.ppf((1 + CONFIDENCE) / 2)
_RESAMPLES = 2000
_MOST_DECIMALS = 6
# Of so many values the bootstrap of the mean and its normal limit agree to two digits; the limit costs nothing.
_NORMAL_FROM = 2000


class Interval(Record):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int  # observations it rests on

    def percent(self, aim: float | None = None) -> str:
        """A share as "61 % (52–69 %)"; none of the three reads as the `aim` that it is above or below: "4.7 % (3–8 %)"."""
        low, value, high = (percent(share, aim) for share in (self.low, self.value, self.high))
        return f"{value} ({low.removesuffix(' %')}–{high})"

    def points(self) -> str:
        """A difference of shares as "+12 points (+4 to +20)"."""
        return f"{100 * self.value:+.0f} points ({100 * self.low:+.0f} to {100 * self.high:+.0f})"

    def number(self, aim: float | None = None) -> str:
        """A mean as "+0.42 (+0.31 to +0.53)"; none of the three reads as the `aim`."""
        value, low, high = (f"{one:+.{decimals(one, aim, 2)}f}" for one in (self.value, self.low, self.high))
        return f"{value} ({low} to {high})"


def percent(share: float, aim: float | None = None) -> str:
    """A share as "61 %", or "4.7 %" where "5 %" would read as the aim that it is below."""
    return f"{100 * share:.{decimals(100 * share, None if aim is None else 100 * aim)}f} %"


def decimals(value: float, aim: float | None, least: int = 0) -> int:
    """How many a value needs so that it does not read as the aim, unless it is the aim."""
    if aim is None or math.isclose(value, aim, rel_tol=1e-9, abs_tol=1e-12):
        return least
    return next(
        (many for many in range(least, _MOST_DECIMALS) if round(value, many) != round(aim, many)), _MOST_DECIMALS
    )


def proportion(successes: float, total: int) -> Interval | None:
    """Share of `total` with Wilson's score interval (Wilson 1927, JASA 22, 209–212); None of nothing.

    `successes` may hold halves, for ties counted as half a win: a tie has the mean of a coin toss and less
    variance, so that the interval is then a little too wide, never too narrow. Unlike the bootstrap it stays
    honest at 0 % and 100 %.
    """
    if total == 0:
        return None
    share = successes / total
    centre = (share + _Z**2 / (2 * total)) / (1 + _Z**2 / total)
    half = _Z * math.sqrt(share * (1 - share) / total + _Z**2 / (4 * total**2)) / (1 + _Z**2 / total)
    # rounding must not put the estimate outside its own interval at 0 % and 100 %
    return Interval(
        value=share, low=min(share, max(0.0, centre - half)), high=max(share, min(1.0, centre + half)), n=total
    )


def mean_of(values: np.ndarray) -> Interval | None:
    """Mean with its percentile bootstrap interval (Efron & Tibshirani 1993, chapter 13); None of fewer than two values.

    The resampling is seeded: the same values always give the same interval.
    """
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return None
    mean = float(values.mean())
    if len(values) >= _NORMAL_FROM:
        half = float(_Z * values.std(ddof=1) / math.sqrt(len(values)))
        return Interval(value=mean, low=mean - half, high=mean + half, n=len(values))
    means = values[np.random.default_rng(0).integers(len(values), size=(_RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(value=mean, low=float(low), high=float(high), n=len(values))


def median_of(values: np.ndarray) -> Interval | None:
    """Median with the limit of its percentile bootstrap interval; None of fewer than two values.

    No resampling is needed: a resample's upper median is at most the k-th smallest value exactly when more than half
    of its n draws are, each with probability k / n (Efron 1982, The Jackknife, the Bootstrap and Other Resampling
    Plans, section 10.3).
    """
    ordered = np.sort(np.asarray(values, dtype=float))
    n = len(ordered)
    if n < 2:
        return None
    at_most = stats.binom.sf(n // 2, n, np.arange(1, n + 1) / n)  # P(resampled median <= k-th value)
    low, high = np.searchsorted(at_most, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    median = float(np.median(ordered))
    return Interval(value=median, low=min(median, float(ordered[low])), high=max(median, float(ordered[high])), n=n)


def paired_difference(both: int, only_before: int, only_after: int, neither: int) -> Interval | None:
    """Share after minus share before, counted on the same items; None of no items.

    Newcombe 1998 (Statistics in Medicine 17, 2635–2650), method 10: two Wilson intervals joined with the
    correlation of the pairs, continuity-corrected. Good coverage at small counts and at 0 %, where the bootstrap fails.
    """
    total = both + only_before + only_after + neither
    before, after = proportion(both + only_before, total), proportion(both + only_after, total)
    if before is None or after is None:
        return None
    phi = _correlation(both, only_before, only_after, neither)
    difference = after.value - before.value
    below = _joined(after.value - after.low, before.high - before.value, phi)
    above = _joined(after.high - after.value, before.value - before.low, phi)
    return Interval(value=difference, low=difference - below, high=difference + above, n=total)


def _correlation(both: int, only_before: int, only_after: int, neither: int) -> float:
    """Phi of the two-by-two table, shrunk towards 0 as method 10 asks."""
    margins = (both + only_before) * (only_after + neither) * (both + only_after) * (only_before + neither)
    if margins == 0:
        return 0.0
    product: float = both * neither - only_before * only_after
    if product > 0:
        product = max(product - (both + only_before + only_after + neither) / 2, 0)
    return product / math.sqrt(margins)


def _joined(first: float, second: float, phi: float) -> float:
    return math.sqrt(max(first**2 - 2 * phi * first * second + second**2, 0.0))

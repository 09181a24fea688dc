"""A mean over prompts, how sure it is, and on which side of a threshold it lies: what a verdict is decided by.

Prompts that share a conversation count as what they are, one observation of several parts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special


class Estimate(NamedTuple):
    """A mean with its standard error; Student's t with `freedom` degrees of freedom is its distribution."""

    value: float  # the plain mean, as a person would count it
    centre: float  # of the interval; for shares a little nearer to 0, see `share_estimate`
    error: float
    freedom: int
    n: int
    spread: float  # standard deviation of one value

    def low(self, confidence: float) -> float:
        """The one-sided lower bound."""
        return self.centre - float(special.stdtrit(self.freedom, confidence)) * self.error

    def high(self, confidence: float) -> float:
        """The one-sided upper bound."""
        return self.centre + float(special.stdtrit(self.freedom, confidence)) * self.error

    def chance_above(self, threshold: float) -> float:
        """p-value of "the true mean is at most `threshold`": small where it is shown to lie above."""
        return float(special.stdtr(self.freedom, (threshold - self.centre) / self.error))

    def chance_below(self, threshold: float) -> float:
        """p-value of "the true mean is at least `threshold`": small where it is shown to lie below."""
        return float(special.stdtr(self.freedom, (self.centre - threshold) / self.error))


def share_estimate(values: np.ndarray, clusters: np.ndarray | None = None) -> Estimate | None:
    """Mean of values in [-1, 1] that come from counting: a win less a loss, a refusal after less one before.

    The interval of Agresti & Min 2005 (Statistics in Medicine 24, 729-740) for matched shares: half a prompt more in
    each of the four cells, so that it stays honest where all values are equal. clusters: a number for each value; values
    of the same number are not independent. None of fewer than two clusters.
    """
    values = np.asarray(values, dtype=float)
    n, freedom = len(values), _freedom(values, clusters)
    if freedom < 1:
        return None
    centre = values.sum() / (n + 2)
    variance = ((values**2).sum() + 1) / (n + 2) - centre**2
    error = math.sqrt(variance / (n + 2)) * _inflation(values, clusters)
    return Estimate(float(values.mean()), float(centre), error, freedom, n, math.sqrt(variance))


def mean_estimate(values: np.ndarray, clusters: np.ndarray | None = None) -> Estimate | None:
    """Mean of any values, by Student's t. None of fewer than two clusters."""
    values = np.asarray(values, dtype=float)
    n, freedom = len(values), _freedom(values, clusters)
    if freedom < 1:
        return None
    mean, spread = float(values.mean()), float(values.std(ddof=1))
    error = max(spread / math.sqrt(n) * _inflation(values, clusters), 1e-9)
    return Estimate(mean, mean, error, freedom, n, spread)


def beyond_length(deltas: np.ndarray, growth: np.ndarray, kinds: np.ndarray) -> Estimate | None:
    """Half of a mean score difference, less what the lengths explain of it: below 0, length explains most.

    deltas: score differences; growth: log ratio of the lengths; kinds: a number for each kind of change (an answer that
    became a refusal differs by more than its length), within which the slope b of deltas on growth is taken by least
    squares. The value is mean / 2 - b * mean growth, whose two parts are independent. None where nothing tells length from
    merit: too few values, or all of a kind grew alike.
    """
    n, (_, places) = len(deltas), np.unique(kinds, return_inverse=True)
    sizes = np.bincount(places) if n else np.zeros(0)
    freedom = n - len(sizes) - 1
    if freedom < 1:
        return None

    def within(values: np.ndarray) -> np.ndarray:
        return values - (np.bincount(places, weights=values) / sizes)[places]

    growing, scored = within(growth), within(deltas)
    if (spread := float((growing**2).sum())) < 1e-9:
        return None
    slope = float((growing * scored).sum()) / spread
    variance = max(float(((scored - slope * growing) ** 2).sum()) / freedom, 1e-18)
    value = float(deltas.mean() / 2 - slope * growth.mean())
    error = math.sqrt(variance * (0.25 / n + growth.mean() ** 2 / spread))
    return Estimate(value, value, error, freedom, n, error * math.sqrt(n))


class Held(NamedTuple):
    """What Holm makes of one p-value among several."""

    level: float  # that it was held against
    holds: bool


def holm(chances: Sequence[float], level: float) -> list[Held]:
    """Which of several p-values hold when all of them together may err with probability `level`.

    Holm 1979 (Scandinavian Journal of Statistics 6, 65-70): the smallest is held against level / their number, the next
    against level / (number - 1), and so on; after the first that fails none holds.
    """
    held = [Held(level, False)] * len(chances)
    goes_on = True
    for rank, place in enumerate(sorted(range(len(chances)), key=lambda place: chances[place])):
        own = level / (len(chances) - rank)
        goes_on = goes_on and chances[place] < own
        held[place] = Held(own, goes_on)
    return held


def prompts_needed(distance: float, spread: float, level: float, power: float = 0.8) -> int | None:
    """So many prompts show a mean that lies `distance` past its threshold, one-sided at `level`; None: none would."""
    if distance <= 0:
        return None
    z = float(special.ndtri(1 - level) + special.ndtri(power))
    return math.ceil((z * spread / distance) ** 2)


def _freedom(values: np.ndarray, clusters: np.ndarray | None) -> int:
    return (len(values) if clusters is None else len(np.unique(clusters))) - 1


def _inflation(values: np.ndarray, clusters: np.ndarray | None) -> float:
    """By how much clustering widens the standard error (Liang & Zeger 1986); never below 1."""
    if clusters is None or len(np.unique(clusters)) == len(values):
        return 1.0
    residuals = values - values.mean()
    alone = float((residuals**2).sum())
    if alone == 0:
        return math.sqrt(len(values) / len(np.unique(clusters)))
    _, places = np.unique(clusters, return_inverse=True)
    together = float((np.bincount(places, weights=residuals) ** 2).sum())
    number = len(np.unique(clusters))
    return max(1.0, math.sqrt(together / alone * number / (number - 1)))

"""What is the true rate, when the counter errs? Rogan and Gladen's correction for a known sensitivity and specificity."""

from __future__ import annotations

import math

from scipy import stats

from cai_helpers.measures.agreement import Agreement
from cai_helpers.measures.intervals import CONFIDENCE, Interval

_Z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))


def rogan_gladen(counted: int, total: int, counter: Agreement) -> Interval | None:
    """The share of `total` that people would count, from the share that `counter` does; None of nothing.

    Rogan and Gladen 1978 (American Journal of Epidemiology 107, 71–76): (p + Sp − 1) / (Se + Sp − 1), held to 0–1. The
    95 % interval is that of Lang and Reiczigel 2014 (Preventive Veterinary Medicine 113, 13–22), which holds the
    uncertainty of Se and Sp too. It takes for granted that the counter errs here as often as where it was measured.

    Raises:
        ValueError: the counter is no better than chance, so nothing can be told from it.
    """
    if total == 0:
        return None
    value = _corrected(counted / total, counter.sensitivity.value, counter.specificity.value)
    size, ill, well = total + _Z**2, counter.sensitivity.n + 2, counter.specificity.n + 2
    share = (counted + _Z**2 / 2) / size
    sensitivity = (counter.hits + 1) / ill
    specificity = (counter.correct_rejections + 1) / well
    centre = _corrected(share, sensitivity, specificity)
    of_sensitivity = sensitivity * (1 - sensitivity) / ill
    of_specificity = specificity * (1 - specificity) / well
    spread = share * (1 - share) / size + centre**2 * of_sensitivity + (1 - centre) ** 2 * of_specificity
    half = _Z * math.sqrt(spread) / (sensitivity + specificity - 1)
    shift = 2 * _Z**2 * (centre * of_sensitivity - (1 - centre) * of_specificity)
    value = _within(value)
    return Interval(
        value=value,
        low=min(value, _within(centre + shift - half)),
        high=max(value, _within(centre + shift + half)),
        n=total,
    )


def corrected_difference(counted: Interval, counter: Agreement) -> Interval:
    """A difference of two counted shares as people would count it: divided by Se + Sp − 1, which holds errors alike on both sides.

    counted: the difference with its interval (see intervals.paired_difference). The uncertainty of Se and Sp is joined to
    it as for a quotient of independent estimates (delta method, limit by limit); held to −1…1.

    Raises:
        ValueError: the counter is no better than chance.
    """
    youden = _youden(counter.sensitivity.value, counter.specificity.value)
    relative = _Z * math.sqrt(_variance(counter.sensitivity) + _variance(counter.specificity)) / youden
    value = counted.value / youden
    below = math.hypot((counted.value - counted.low) / youden, value * relative)
    above = math.hypot((counted.high - counted.value) / youden, value * relative)
    low, value, high = (max(-1.0, min(1.0, limit)) for limit in (value - below, value, value + above))
    return Interval(value=value, low=low, high=high, n=counted.n)


def _corrected(share: float, sensitivity: float, specificity: float) -> float:
    return (share + specificity - 1) / _youden(sensitivity, specificity)


def _youden(sensitivity: float, specificity: float) -> float:
    """Youden's J: what the counter adds to chance."""
    if sensitivity + specificity <= 1:
        raise ValueError(f"a counter of sensitivity {sensitivity:.2f} and specificity {specificity:.2f} tells nothing")
    return sensitivity + specificity - 1


def _variance(share: Interval) -> float:
    smoothed = (share.value * share.n + 1) / (share.n + 2)  # 100 % of a sample is not certain
    return smoothed * (1 - smoothed) / (share.n + 2)


def _within(share: float) -> float:
    return min(1.0, max(0.0, share))

"""How often is the scorer right on pairs that people have judged, and from which score difference on can it be believed?"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from pydantic import ValidationError
from scipy import stats

from cai_helpers.errors import CaiError
from cai_helpers.measures.intervals import Interval, proportion
from cai_helpers.schema import Record
from cai_helpers.store import read_json
from cai_helpers.workspace import Workspace

NOT_CALIBRATED = "not calibrated: run `cai calibrate`"
_MOST_BINS, _PAIRS_A_BIN = 8, 20
_FEWEST = 30  # pairs above a threshold: of fewer, even 70 % right cannot be told from a coin
_ERROR = 0.025  # one-sided, of believing a scorer that tosses a coin

Verdict = Literal["trusted", "trusted above a difference", "not to be trusted", "too few pairs"]


class JudgedGold(NamedTuple):
    """A gold pair and what the scorer gave."""

    better: float
    worse: float
    better_words: int
    worse_words: int
    category: str


class Bin(Record):
    low: float  # |delta|, inclusive; up to the next bin's
    high: float  # the largest there is
    accuracy: Interval


class Calibration(Record):
    """Accuracy is the share of pairs in which the better response scores higher; a tie is half."""

    gold: str
    pairs: int
    ties: int
    accuracy: Interval
    bins: list[Bin]
    categories: dict[str, Interval]
    length_correlation: float | None  # Spearman, score of a text with its words; None: nothing varies
    longer_wins: Interval | None  # of the pairs with unequal lengths
    longer_is_better: Interval | None  # what it would be for a scorer that is always right
    target: float
    min_delta: float | None  # recommended; None: no difference is enough
    above: Interval | None  # accuracy from min_delta on
    verdict: Verdict


def calibrate(judged: list[JudgedGold], target: float, gold: str) -> Calibration:
    """Figures of at least one judged pair. target: accuracy from which on a label is believed, 0.5 to 1."""
    delta = np.array([pair.better - pair.worse for pair in judged])
    right = np.where(delta == 0, 0.5, delta > 0)
    longer = np.array([pair.better_words - pair.worse_words for pair in judged])
    unequal = longer != 0
    bins = _bins(np.abs(delta), right)
    min_delta = _smallest_difference(np.abs(delta), right, [0.0, *(deltas.low for deltas in bins[1:])], target)
    above = None if min_delta is None else _share(right[np.abs(delta) >= min_delta])
    return Calibration(
        gold=gold,
        pairs=len(judged),
        ties=int((delta == 0).sum()),
        accuracy=_share(right),
        bins=bins,
        categories=_by_category(judged, right),
        length_correlation=_length_correlation(judged),
        longer_wins=_share(np.where(longer > 0, right, 1 - right)[unequal]),
        longer_is_better=_share((longer > 0)[unequal]),
        target=target,
        min_delta=min_delta,
        above=above,
        verdict=_verdict(len(judged), min_delta),
    )


def trust_line(calibration: Calibration | None) -> str:
    """One sentence that stands beside every win rate."""
    if calibration is None:
        return NOT_CALIBRATED
    known = f"right on {calibration.accuracy.percent()} of {calibration.pairs} gold pairs"
    goal = f"{100 * calibration.target:.0f} %"
    if calibration.verdict == "too few pairs":
        return f"{known}: too few to say whether it can be trusted"
    if calibration.min_delta is None:
        return f"{known}; no score difference is enough for {goal}: it is not to be trusted here"
    if calibration.min_delta > 0 and calibration.above is not None:
        return f"{known}; above |delta| {calibration.min_delta:.2f}: {calibration.above.percent()} of {calibration.above.n}"
    return known


def load_calibration(workspace: Workspace, identity: str) -> Calibration | None:
    """The calibration of this very scorer, whose identity is judge.scorer_identity; None if there is none.

    Raises:
        CaiError: the file is damaged, or another version of this package wrote it.
    """
    for file in (workspace.calibration, workspace.calibration_of(identity)):
        if not file.exists():
            continue
        stored = read_json(file, "Delete that file, and run `cai calibrate` again.")
        try:
            if stored["scorer"] == identity:
                return Calibration.model_validate(stored["calibration"])
        except (KeyError, TypeError, ValidationError) as error:
            raise CaiError(
                f"{file} is not of the form that this version of cai-helpers writes.",
                "Run `cai calibrate` again with the same --workspace.",
            ) from error
    return None


def trust_of_pairs(workspace: Workspace) -> str:
    """The sentence for the scorer that labelled the workspace's pairs, as the score stage noted it."""
    scored = workspace.manifest("score")
    return NOT_CALIBRATED if scored is None else trust_line(load_calibration(workspace, scored.report["scorer"]))


def _bins(size: np.ndarray, right: np.ndarray) -> list[Bin]:
    """Quantile bins of |delta|, about equally full; fewer where many differences are equal."""
    count = max(1, min(_MOST_BINS, len(size) // _PAIRS_A_BIN))
    lows = np.unique(np.quantile(size, np.arange(count) / count))
    place = np.searchsorted(lows, size, side="right") - 1
    return [
        Bin(low=float(lows[k]), high=float(size[place == k].max()), accuracy=_share(right[place == k]))
        for k in range(len(lows))
        if (place == k).any()
    ]


def _smallest_difference(size: np.ndarray, right: np.ndarray, candidates: list[float], target: float) -> float | None:
    """The smallest candidate from which on accuracy reaches the target and is no coin's luck.

    Whoever tries every threshold finds one that a coin passes too. So the candidates are the few edges of the bins, and
    each must beat chance in an exact binomial test at 0.025 divided by their number (Bonferroni): a coin is then
    recommended a threshold in at most 2.5 % of calibrations. The target itself is met by the estimate, as asked for;
    its interval is shown beside it.
    """
    for threshold in candidates:
        kept = right[size >= threshold]
        if len(kept) < _FEWEST or kept.mean() < target:
            continue
        luck = stats.binom.sf(math.floor(kept.sum()) - 1, len(kept), 0.5)  # P(a coin is right as often)
        if luck < _ERROR / len(candidates):
            return float(threshold)
    return None


def _by_category(judged: list[JudgedGold], right: np.ndarray) -> dict[str, Interval]:
    names = np.array([pair.category for pair in judged])
    shares = {str(name): _share(right[names == name]) for name in np.unique(names)}
    return {name: share for name, share in shares.items() if share is not None}


def _length_correlation(judged: list[JudgedGold]) -> float | None:
    scores = [score for pair in judged for score in (pair.better, pair.worse)]
    words = [count for pair in judged for count in (pair.better_words, pair.worse_words)]
    if len(set(scores)) < 2 or len(set(words)) < 2:
        return None
    return float(stats.spearmanr(scores, words).statistic)


def _share(right: np.ndarray) -> Interval | None:
    return proportion(float(right.sum()), len(right))


def _verdict(pairs: int, min_delta: float | None) -> Verdict:
    if pairs < _FEWEST:
        return "too few pairs"
    if min_delta is None:
        return "not to be trusted"
    return "trusted" if min_delta == 0 else "trusted above a difference"

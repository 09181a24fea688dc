"""The win rate as it would be if both answers were equally long. Shown beside the plain one, never a gate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cai_helpers.measures.intervals import CONFIDENCE, Interval

RIDGE = 1.0  # on b: keeps the slope finite where every longer answer wins
LEAST_OVERLAP, MOST_OVERLAP = 0.2, 0.8  # share of prompts on which the first answer is the longer one
LEAST_PROMPTS = 20
HARDLY_OVERLAP = "lengths hardly overlap"
TOO_FEW = "too few prompts"

_RESAMPLES = 1000
_ROUNDS = 60  # Newton steps at most
_FARTHEST = 20.0  # |a|: a win rate beyond 1 - 2e-9 is 1


def length_controlled(
    wins: Sequence[float], characters_first: Sequence[int], characters_second: Sequence[int]
) -> Interval | None:
    """Win rate of the first answer at equal length, in [0, 1]; None where `why_not` has a reason.

    wins: 1, ½ or 0 a prompt, or a share in between; lengths in characters. The model is that of AlpacaEval 2 (Dubois et
    al. 2024, arXiv 2404.04475) without its terms for single instructions, which takes hundreds of models to fit:
    logit P(win) = a + b · tanh(Δ / σ), Δ the difference in length and σ its standard deviation, ridge 1 on b; at Δ = 0
    that is 1 / (1 + e^-a). Interval: percentile bootstrap over prompts, seeded.
    """
    if why_not(characters_first, characters_second) is not None:
        return None
    outcome = np.asarray(wins, dtype=float)
    length = _length_term(characters_first, characters_second)
    draws = np.random.default_rng(0).multinomial(len(outcome), np.full(len(outcome), 1 / len(outcome)), _RESAMPLES)
    value = float(_at_equal_length(outcome, length, np.ones((1, len(outcome))))[0])
    low, high = np.quantile(
        _at_equal_length(outcome, length, draws.astype(float)), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    )
    return Interval(value=value, low=min(value, float(low)), high=max(value, float(high)), n=len(outcome))


def why_not(characters_first: Sequence[int], characters_second: Sequence[int]) -> str | None:
    """Why lengths cannot be controlled for, or None: they can.

    Where one side is nearly always the longer one, a win rate at equal length would be read off a line drawn far beyond
    the data: on AlpacaEval's public judgements it was then up to 15 points off the published figure, and within half a
    point where lengths overlap (tests/test_length_control.py).
    """
    if len(characters_first) < LEAST_PROMPTS:
        return TOO_FEW
    difference = np.asarray(characters_first) - np.asarray(characters_second)
    longer = float(np.mean(difference > 0) + np.mean(difference == 0) / 2)
    return None if LEAST_OVERLAP <= longer <= MOST_OVERLAP else HARDLY_OVERLAP


def _length_term(characters_first: Sequence[int], characters_second: Sequence[int]) -> np.ndarray:
    difference = np.asarray(characters_first, dtype=float) - np.asarray(characters_second, dtype=float)
    spread = difference.std()
    return np.tanh(difference / spread) if spread > 0 else np.zeros_like(difference)


def _at_equal_length(outcome: np.ndarray, length: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-a) of each weighting of the prompts. weights: shape (weightings, prompts)."""
    level, slope = np.zeros(len(weights)), np.zeros(len(weights))
    for _ in range(_ROUNDS):
        expected = 1 / (1 + np.exp(-(level[:, None] + slope[:, None] * length)))
        rest = weights * (outcome - expected)
        spread = weights * expected * (1 - expected)
        toward = rest.sum(1), (rest * length).sum(1) - RIDGE * slope
        # the negative second derivatives; a little more on the diagonal keeps them from vanishing where all is won
        first = spread.sum(1) + 1e-6
        mixed = (spread * length).sum(1)
        second = (spread * length**2).sum(1) + RIDGE
        area = first * second - mixed**2
        step = (second * toward[0] - mixed * toward[1]) / area, (first * toward[1] - mixed * toward[0]) / area
        step = np.clip(step[0], -2, 2), np.clip(step[1], -2, 2)  # full steps can overshoot far from the solution
        level, slope = np.clip(level + step[0], -_FARTHEST, _FARTHEST), slope + step[1]
        if max(np.abs(step[0]).max(), np.abs(step[1]).max()) < 1e-8:
            break
    return 1 / (1 + np.exp(-level))

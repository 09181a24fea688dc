"""The length-controlled win rate: right on planted worlds and on AlpacaEval's public judgements, silent elsewhere."""

from __future__ import annotations

import gzip
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from cai_helpers.evaluation.length_control import HARDLY_OVERLAP, TOO_FEW, length_controlled, why_not

SHARED = Path(os.environ.get("CAI_SHARED", Path(__file__).resolve().parent.parent.parent / "shared"))
ALPACA = SHARED / "data" / "alpaca_eval_lengths.csv.gz"


def planted(level: float, slope: float, prompts: int, longer: float, seed: int = 0):
    """Wins by the very model, with answers that are longer by `longer` characters on average (spread 300)."""
    draw = np.random.default_rng(seed)
    second = draw.integers(400, 1200, prompts)
    first = np.maximum(1, second + draw.normal(longer, 300, prompts).astype(int))
    difference = first - second
    chance = 1 / (1 + np.exp(-(level + slope * np.tanh(difference / difference.std()))))
    return (draw.random(prompts) < chance).astype(float), first, second


def test_wins_that_length_alone_explains_vanish_at_equal_length():
    wins, first, second = planted(level=0.0, slope=3.0, prompts=2000, longer=150)
    assert wins.mean() > 0.6
    rate = length_controlled(wins, first, second)
    assert rate.low < 0.5 < rate.high
    assert rate.high - rate.low < 0.12


def test_an_advantage_that_length_does_not_explain_stays():
    wins, first, second = planted(level=1.0, slope=0.0, prompts=2000, longer=0)
    rate = length_controlled(wins, first, second)
    assert rate.low < 1 / (1 + np.exp(-1)) < rate.high
    assert abs(rate.value - wins.mean()) < 0.02


def test_the_interval_holds_the_truth_in_most_of_many_worlds():
    truth = 1 / (1 + np.exp(-0.5))
    held = 0
    for seed in range(60):
        rate = length_controlled(*planted(level=0.5, slope=1.5, prompts=150, longer=60, seed=seed))
        held += rate.low <= truth <= rate.high
    assert held >= 53  # 57 expected; fewer has a probability below 3 %


def test_exchanged_sides_give_the_complement():
    wins, first, second = planted(level=0.4, slope=1.0, prompts=300, longer=40)
    assert length_controlled(1 - wins, second, first).value == pytest.approx(
        1 - length_controlled(wins, first, second).value
    )


def test_where_every_prompt_is_won_the_rate_is_one():
    _, first, second = planted(level=0.0, slope=0.0, prompts=100, longer=0)
    rate = length_controlled(np.ones(100), first, second)
    assert rate.value > 0.999
    assert rate.high <= 1


def test_equal_lengths_leave_the_plain_win_rate():
    wins, lengths = np.array([1.0, 1.0, 0.5, 0.0] * 20), [300] * 80
    assert length_controlled(wins, lengths, lengths).value == pytest.approx(wins.mean())


def test_one_side_that_is_nearly_always_longer_is_said_and_not_extrapolated():
    wins, first, second = planted(level=0.0, slope=1.0, prompts=200, longer=600)
    assert why_not(first, second) == HARDLY_OVERLAP
    assert length_controlled(wins, first, second) is None


def test_a_handful_of_prompts_is_too_few():
    assert why_not([10, 20], [20, 10]) == TOO_FEW
    assert length_controlled([1, 0], [10, 20], [20, 10]) is None


@pytest.mark.skipif(not ALPACA.exists(), reason="needs AlpacaEval's lengths: set CAI_SHARED")
def test_where_lengths_overlap_it_comes_within_half_a_point_of_the_published_figure():
    pairs, published = _alpaca()
    found = {name: length_controlled(*zip(*rows, strict=True)) for name, rows in pairs.items()}
    compared = {name: 100 * rate.value - published[name] for name, rate in found.items() if rate is not None}
    compared.pop("gpt4_1106_preview", None)  # the baseline against itself
    assert len(compared) >= 2
    assert {name: off for name, off in compared.items() if abs(off) > 0.5} == {}
    # the rule is needed: elsewhere the same formula is far off, so nothing is shown
    assert len(found) - len(compared) > 25


def _alpaca():
    pairs, published = defaultdict(list), {}
    with gzip.open(ALPACA, "rt", encoding="utf-8") as file:
        next(file)
        for line in file:
            name, baseline, model, preference, _, controlled = line.strip().split(",")
            pairs[name].append((float(preference), int(model), int(baseline)))
            published[name] = float(controlled)
    return pairs, published

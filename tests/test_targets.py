"""Targets: ok and falls short are told apart, and the slope's interval holds what it says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from cai_helpers.training.outcome.targets import held_against, slope_of


def rows(epochs: float, slope: float, loss: float) -> list[dict]:
    steps = np.linspace(0.05, epochs, 20)
    noise = np.random.default_rng(0).normal(scale=0.05, size=20)
    return [
        {"epoch": epoch, "margin": slope * epoch + error, "loss": loss}
        for epoch, error in zip(steps, noise, strict=True)
    ]


def test_a_run_that_did_what_it_should_meets_every_target():
    targets = held_against(rows(3, 0.2, 0.45), eval_accuracy=0.9, eval_pairs=30, loss_start=math.log(2))
    assert [(target.name, target.ok) for target in targets] == [
        ("epochs", True), ("held-out accuracy", True), ("margin trend", True), ("final loss", True),
    ]  # fmt: skip
    assert targets[1].line() == (
        "ok: 90 % (74–97 %) of 30 pairs (aim at least 65%; a coin has 50 %)"
    )  # fmt: skip


def test_each_target_falls_short_for_its_own_reason():
    targets = held_against(rows(1.5, 0.0, 1.335), eval_accuracy=0.6, eval_pairs=30, loss_start=math.log(2))
    assert [target.ok for target in targets] == [False] * 4


def test_without_autocorrelation_the_interval_is_that_of_ordinary_least_squares_but_for_the_parabola():
    x = np.arange(400)
    y = 0.01 * x + np.random.default_rng(1).normal(size=400)
    ours, theirs = slope_of(x, y), stats.linregress(x, y)
    assert ours.value == pytest.approx(theirs.slope)
    assert ours.high - ours.value == pytest.approx(1.966 * theirs.stderr, rel=0.05)


def test_the_interval_holds_the_true_slope_as_often_as_it_says_also_of_noise_with_a_memory():
    random = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        noise = np.zeros(110)
        for place in range(1, 110):
            noise[place] = 0.5 * noise[place - 1] + random.normal()
        interval = slope_of(range(60), 0.1 * np.arange(60) + noise[50:])
        held += interval.low <= 0.1 <= interval.high
    assert held / 300 > 0.9  # ordinary least squares: 0.76


def test_a_margin_that_rises_and_flattens_has_a_trend():
    x = np.linspace(0, 3, 20)
    noise = np.random.default_rng(0).normal(scale=0.03, size=20)
    assert slope_of(x, 0.6 * (1 - np.exp(-x)) + noise).low > 0


def test_too_few_rows_have_no_slope():
    assert slope_of([1, 2, 3, 4, 5], [1, 2, 3, 4, 5]) is None
    assert slope_of([1] * 10, range(10)) is None


def test_a_loss_on_another_scale_is_not_held_against_the_target_of_dpos_own():
    for start in (None, 25.0):
        targets = held_against(rows(3, 0.2, 12.0), eval_accuracy=0.9, eval_pairs=30, loss_start=start)
        assert [target.name for target in targets] == ["epochs", "held-out accuracy", "margin trend"]

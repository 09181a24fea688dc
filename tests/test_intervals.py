"""Intervals against published figures, scipy, and their own promises."""

import numpy as np
import pytest
from scipy import stats

from cai_helpers.measures.intervals import Interval, mean_of, median_of, paired_difference, percent, proportion


@pytest.mark.parametrize(("successes", "total"), [(0, 10), (1, 10), (81, 263), (15, 148), (50, 50), (3, 100_000)])
def test_a_proportion_has_the_wilson_interval_of_scipy(successes, total):
    expected = stats.binomtest(successes, total).proportion_ci(method="wilson")
    found = proportion(successes, total)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.n == total


def test_a_published_wilson_interval_is_reproduced():
    # Newcombe 1998 (Statistics in Medicine 17, 857–872), table I: 81 of 263
    found = proportion(81, 263)
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)


def test_a_share_of_nothing_has_no_interval():
    assert proportion(0, 0) is None
    assert paired_difference(0, 0, 0, 0) is None


def test_half_wins_count():
    found = proportion(2.5, 5)
    assert found.value == 0.5
    assert found.low + found.high == pytest.approx(1.0)


def test_at_all_and_none_the_estimate_stays_inside_its_interval():
    for n in (1, 3, 7, 49, 1000):
        assert proportion(n, n).high == 1.0
        assert proportion(0, n).low == 0.0
        assert proportion(n, n).low < 1.0
        assert proportion(0, n).high > 0.0


def test_a_mean_interval_is_reproducible_and_holds_the_mean():
    values = np.random.default_rng(1).normal(0.3, 1.0, size=400)
    found = mean_of(values)
    assert found == mean_of(values)
    assert found.low < found.value < found.high
    normal = 1.96 * values.std(ddof=1) / 20
    assert found.high - found.value == pytest.approx(normal, rel=0.1)


def test_a_mean_interval_agrees_with_scipys_bootstrap():
    values = np.random.default_rng(2).exponential(size=80)
    expected = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(3))
    found = mean_of(values)
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=0.02)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=0.02)


def test_the_normal_limit_and_the_bootstrap_agree_where_one_takes_over_from_the_other():
    values = np.random.default_rng(4).normal(size=2000)
    limit, bootstrap = mean_of(values), mean_of(values[:-1])
    assert limit.low == pytest.approx(bootstrap.low, abs=0.005)
    assert limit.high == pytest.approx(bootstrap.high, abs=0.005)


def test_a_median_interval_agrees_with_a_resampled_one():
    values = np.random.default_rng(5).exponential(size=101)
    draw = np.random.default_rng(6)
    medians = np.median(values[draw.integers(101, size=(20_000, 101))], axis=1)
    found = median_of(values)
    assert found.value == np.median(values)
    low, high = np.quantile(medians, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.03)
    assert found.high == pytest.approx(high, abs=0.03)


def test_one_value_says_nothing_about_a_mean_or_a_median():
    assert mean_of(np.array([1.0])) is None
    assert median_of(np.array([1.0])) is None
    assert mean_of(np.array([])) is None


def test_equal_values_have_an_interval_of_no_width():
    assert (mean_of(np.full(9, 2.0)).low, mean_of(np.full(9, 2.0)).high) == (2.0, 2.0)
    assert (median_of(np.full(9, 2.0)).low, median_of(np.full(9, 2.0)).high) == (2.0, 2.0)


def test_a_paired_difference_reproduces_newcombes_example():
    # Newcombe 1998 (Statistics in Medicine 17, 2635–2650), table III, method 10: 36, 12, 2, 0
    found = paired_difference(both=36, only_before=2, only_after=12, neither=0)
    assert (round(found.low, 4), round(found.high, 4)) == (0.0569, 0.3404)


def test_a_paired_difference_changes_sign_with_the_direction():
    up, down = paired_difference(10, 2, 20, 30), paired_difference(10, 20, 2, 30)
    assert up.value == pytest.approx(18 / 62)
    assert (up.low, up.high) == pytest.approx((-down.high, -down.low))


def test_no_change_at_all_still_has_a_width():
    found = paired_difference(0, 0, 0, 40)
    assert found.value == 0.0
    assert found.low < 0 < found.high < 0.1


def test_intervals_read_as_people_write_them():
    assert proportion(31, 50).percent() == "62 % (48–74 %)"
    assert paired_difference(10, 2, 20, 30).points() == "+29 points (+15 to +41)"
    assert mean_of(np.full(3, 0.5)).number() == "+0.50 (+0.50 to +0.50)"


@pytest.mark.parametrize(
    ("value", "aim", "told"),
    [
        (0.048, 0.05, "4.8 %"),
        (0.0496, 0.05, "4.96 %"),
        (0.05, 0.05, "5 %"),  # it is the aim
        (0.0501, 0.05, "5.01 %"),
        (0.03, 0.05, "3 %"),
        (0.646, 0.65, "64.6 %"),
        (0.048, None, "5 %"),
    ],
)
def test_a_share_never_reads_as_the_aim_that_it_misses_or_meets_by_a_little(value, aim, told):
    assert percent(value, aim) == told


def test_an_interval_keeps_its_distance_from_the_aim_too():
    assert Interval(value=0.048, low=0.03, high=0.08, n=300).percent(0.05) == "4.8 % (3–8 %)"
    assert Interval(value=0.71, low=0.6004, high=0.8, n=300).percent(0.60) == "71 % (60.04–80 %)"
    assert Interval(value=0.499, low=0.31, high=0.7, n=9).number(0.5) == "+0.499 (+0.31 to +0.70)"
    assert Interval(value=0.01, low=0.002, high=0.02, n=9).number(0) == "+0.01 (+0.002 to +0.02)"

import numpy as np
import pytest

from cai_helpers.measures.agreement import Agreement
from cai_helpers.measures.intervals import Interval, paired_difference
from cai_helpers.measures.prevalence import corrected_difference, rogan_gladen


def counter(hits: int, misses: int, false_alarms: int, correct_rejections: int) -> Agreement:
    return Agreement(
        hits=hits,
        misses=misses,
        false_alarms=false_alarms,
        correct_rejections=correct_rejections,
        on="40 answers",
        command="made up",
    )


GOOD = counter(270, 30, 15, 285)  # sensitivity 90 %, specificity 95 %


def test_the_figures_of_a_card_are_those_of_its_counts():
    card = counter(20, 5, 10, 15)  # Cohen's kappa 0.4 is the textbook's example of these counts
    assert (card.n, card.sensitivity.value, card.specificity.value, card.accuracy.value) == (50, 0.8, 0.6, 0.7)
    assert card.kappa == pytest.approx(0.4)
    assert card.f1 == pytest.approx(40 / 55)
    assert card.sentence() == (
        "κ 0.40 with people, sensitivity 80 % (61–91 %), specificity 60 % (41–77 %), on 40 answers (made up)"
    )


def test_a_rate_is_corrected_for_what_the_counter_misses_and_for_its_false_alarms():
    true = 0.4
    counted = round(1000 * (true * 0.9 + (1 - true) * 0.05))
    assert rogan_gladen(counted, 1000, GOOD).value == pytest.approx(true)
    assert rogan_gladen(0, 0, GOOD) is None


def test_a_corrected_rate_stays_between_nothing_and_everything_and_inside_its_interval():
    for counted in range(101):
        rate = rogan_gladen(counted, 100, GOOD)
        assert 0 <= rate.low <= rate.value <= rate.high <= 1


def test_a_corrected_interval_is_wider_than_one_that_takes_the_counter_for_perfect():
    perfect = counter(10**9, 0, 0, 10**9)
    sure, unsure = rogan_gladen(40, 100, perfect), rogan_gladen(40, 100, GOOD)
    assert sure.value == pytest.approx(0.4)
    assert unsure.high - unsure.low > sure.high - sure.low


@pytest.mark.parametrize("true", [0.0, 0.02, 0.3, 0.9, 1.0])
def test_the_interval_holds_the_true_rate_in_nineteen_of_twenty_repetitions(true):
    random = np.random.default_rng(0)
    held = 0
    for _ in range(500):
        hits, rejections = random.binomial(300, 0.9), random.binomial(300, 0.95)
        measured = counter(hits, 300 - hits, 300 - rejections, rejections)
        rate = rogan_gladen(int(random.binomial(160, true * 0.9 + (1 - true) * 0.05)), 160, measured)
        held += rate.low - 1e-9 <= true <= rate.high + 1e-9
    assert held >= 0.93 * 500


def test_the_interval_of_a_corrected_difference_holds_the_true_one():
    random = np.random.default_rng(0)
    before, after, held = 0.2, 0.6, 0
    for _ in range(500):
        hits, rejections = random.binomial(300, 0.9), random.binomial(300, 0.95)
        measured = counter(hits, 300 - hits, 300 - rejections, rejections)
        seen = random.random((2, 160)) < [[0.9 * before + 0.05 * (1 - before)], [0.9 * after + 0.05 * (1 - after)]]
        both, only_before, only_after = (
            int((first & second).sum())
            for first, second in ((seen[0], seen[1]), (seen[0], ~seen[1]), (~seen[0], seen[1]))
        )
        counted = paired_difference(both, only_before, only_after, 160 - both - only_before - only_after)
        difference = corrected_difference(counted, measured)
        held += difference.low <= after - before <= difference.high
    assert held >= 0.93 * 500


def test_no_difference_stays_no_difference_and_a_large_one_stays_within_bounds():
    none = corrected_difference(Interval(value=0.0, low=-0.1, high=0.1, n=100), GOOD)
    assert (none.value, none.low, none.high) == pytest.approx((0, -0.1 / 0.85, 0.1 / 0.85))
    assert corrected_difference(Interval(value=0.95, low=0.9, high=1.0, n=100), GOOD).high == 1


def test_a_counter_that_is_no_better_than_chance_corrects_nothing():
    with pytest.raises(ValueError, match="tells nothing"):
        rogan_gladen(5, 10, counter(5, 5, 5, 5))

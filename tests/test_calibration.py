"""Planted scorers, of which the truth is known, and what the calibration says of them."""

import math
import random

import pytest

from cai_helpers.calibration.accuracy import NOT_CALIBRATED, JudgedGold, calibrate, trust_line
from cai_helpers.pages.calibration_picture import calibration_figure


def judge(deltas, better_words=10, worse_words=10, category="harmless"):
    return [JudgedGold(delta, 0.0, better_words, worse_words, category) for delta in deltas]


def planted(count: int, right_at, seed: int = 0) -> list[float]:
    """Differences 0…4 in size, of which a share `right_at(size)` has the right sign."""
    dice = random.Random(seed)
    sizes = [4 * (number + 1) / count for number in range(count)]
    return [size if dice.random() < right_at(size) else -size for size in sizes]


def test_a_perfect_scorer_is_trusted_from_the_smallest_difference_on():
    found = calibrate(judge(planted(200, lambda size: 1.0)), 0.7, "gold")
    assert (found.verdict, found.min_delta, found.accuracy.value, found.ties) == ("trusted", 0.0, 1.0, 0)
    assert [one.accuracy.n for one in found.bins] == [25] * 8
    assert trust_line(found) == "right on 100 % (98–100 %) of 200 gold pairs"


def test_a_scorer_right_only_on_large_differences_is_trusted_above_one():
    found = calibrate(judge(planted(400, lambda size: 0.5 if size < 2 else 0.95)), 0.9, "gold")
    assert found.verdict == "trusted above a difference"
    assert 1.9 < found.min_delta < 2.6
    assert found.above.value >= 0.9
    assert f"above |delta| {found.min_delta:.2f}: " in trust_line(found)


def test_a_coin_is_hardly_ever_recommended_a_threshold():
    verdicts = [calibrate(judge(planted(160, lambda size: 0.5, seed)), 0.6, "gold").verdict for seed in range(200)]
    assert verdicts.count("not to be trusted") >= 193


def test_a_scorer_that_is_always_wrong_is_not_trusted_and_says_so():
    found = calibrate(judge(planted(100, lambda size: 0.0)), 0.7, "gold")
    assert found.min_delta is None
    assert found.verdict == "not to be trusted"
    assert trust_line(found).endswith("no score difference is enough for 70 %: it is not to be trusted here")


def test_a_lover_of_length_is_seen():
    dice = random.Random(1)
    lengths = [tuple(dice.sample(range(5, 200), 2)) for _ in range(200)]
    judged = [JudgedGold(float(one), float(other), one, other, "helpful") for one, other in lengths]
    found = calibrate(judged, 0.7, "gold")
    assert found.length_correlation == pytest.approx(1.0)
    assert found.longer_wins.value == 1.0
    assert found.longer_is_better.value == found.accuracy.value
    assert 0.4 < found.longer_is_better.value < 0.6
    assert found.verdict == "not to be trusted"


def test_a_tie_is_half_right_and_counted():
    found = calibrate(judge([0.0] * 20 + [1.0] * 20), 0.7, "gold")
    assert (found.ties, found.accuracy.value) == (20, 0.75)
    assert [(one.low, one.accuracy.value) for one in found.bins] == [(0.0, 0.5), (0.5, 1.0)]


def test_ties_count_against_a_threshold_of_zero():
    found = calibrate(judge([0.0] * 40 + [1.0] * 60), 0.9, "gold")
    assert (found.accuracy.value, found.verdict, found.min_delta) == (0.8, "trusted above a difference", 1.0)
    assert (found.above.value, found.above.n) == (1.0, 60)


def test_equal_scores_and_equal_lengths_have_no_figures_rather_than_invented_ones():
    found = calibrate(judge([0.0] * 40), 0.7, "gold")
    assert found.length_correlation is None
    assert found.longer_wins is None
    assert found.verdict == "not to be trusted"
    assert len(found.bins) == 1


def test_few_pairs_are_no_ground_for_a_verdict():
    found = calibrate(judge([1.0] * 29), 0.7, "gold")
    assert found.verdict == "too few pairs"
    assert trust_line(found).endswith("too few to say whether it can be trusted")


def test_a_difference_that_only_twenty_pairs_exceed_is_not_recommended_however_right_they_are():
    found = calibrate(judge(planted(160, lambda size: 1.0 if size > 3.5 else 0.5)), 0.95, "gold")
    assert (found.bins[-1].accuracy.value, found.bins[-1].accuracy.n) == (1.0, 20)
    assert (found.verdict, found.min_delta) == ("not to be trusted", None)


def test_categories_are_told_apart():
    found = calibrate(judge([1.0] * 30) + judge([-1.0] * 10, category="helpful"), 0.7, "gold")
    assert {name: share.value for name, share in found.categories.items()} == {"harmless": 1.0, "helpful": 0.0}


def test_without_a_calibration_the_sentence_says_what_to_run():
    assert trust_line(None) == NOT_CALIBRATED == "not calibrated: run `cai calibrate`"


@pytest.mark.parametrize("truth", [1.0, 0.5])
def test_the_picture_has_a_point_a_bin_at_its_accuracy(truth):
    found = calibrate(judge(planted(200, lambda size: truth)), 0.7, "gold")
    axes = calibration_figure(found).axes[0]
    points = sorted((x, y) for bars in axes.containers for x, y in zip(*bars.lines[0].get_data(), strict=True))
    assert [y for _, y in points] == pytest.approx([100 * one.accuracy.value for one in found.bins])
    labels = {text.get_text() for text in axes.get_legend().get_texts()}
    assert ("not believed" in labels) is (truth == 0.5)
    assert not any(math.isnan(y) for _, y in points)

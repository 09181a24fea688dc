"""Weights of pairs become repetitions: as many on average, always the same for a seed, and said."""

from __future__ import annotations

import pytest
import tiny_run

from cai_helpers.schema import PreferenceRow
from cai_helpers.settings import Train
from cai_helpers.training.rows.weights import resample, row_weights, weigh


def row(number: int, delta: float | None, labelled_by: str = "reward model") -> PreferenceRow:
    values = tiny_run.preference_row(number) | {"id": f"{number}", "delta": delta, "labelled_by": labelled_by}
    return PreferenceRow.model_validate(values)


def test_by_default_every_row_counts_once_and_nothing_is_said():
    rows = [row(1, 5.0), row(2, 0.1), row(3, None, "person")]
    assert weigh(rows, Train(), 0) == (rows, None)


def test_weights_follow_the_delta_between_a_quarter_of_the_median_and_twice_that():
    rows = [row(number, delta) for number, delta in enumerate([0.01, 1.0, 1.0, 1.0, 100.0])]
    weights = row_weights(rows, Train(weight_by_delta=True))
    assert weights == pytest.approx([0.25 / 1.05, 1 / 1.05, 1 / 1.05, 1 / 1.05, 2 / 1.05])
    assert sum(weights) == pytest.approx(len(rows))


def test_a_persons_row_weighs_what_is_set_whatever_its_delta():
    rows = [row(1, 1.0), row(2, 3.0), row(3, -4.0, "person"), row(4, None, "person")]
    weights = row_weights(rows, Train(weight_by_delta=True, person_weight=3))
    assert weights == pytest.approx([0.5, 1.5, 3, 3])
    assert row_weights(rows, Train(person_weight=3)) == [1, 1, 3, 3]


def test_equal_deltas_or_none_at_all_weigh_the_same():
    assert weigh([row(1, 0.0), row(2, 0.0)], Train(weight_by_delta=True), 0).said is None
    assert weigh([row(1, 2.0), row(2, 2.0)], Train(weight_by_delta=True), 0).said is None


@pytest.mark.parametrize("seed", range(20))
def test_a_row_stands_in_the_data_its_weight_rounded_down_or_up_times(seed):
    weights = [0.2, 1.7, 1.0, 0.0, 2.1, 3.0]
    counts = resample(weights, seed)
    assert all(int(weight) <= count <= int(weight) + 1 for weight, count in zip(weights, counts, strict=True))
    assert sum(counts) == 8
    assert counts[3] == 0
    assert counts == resample(weights, seed)


def test_over_the_seeds_the_mean_count_is_the_weight():
    weights = [0.3, 1.6, 0.1, 2.5, 0.5]
    totals = [0] * 5
    for seed in range(2000):
        totals = [total + count for total, count in zip(totals, resample(weights, seed), strict=True)]
    assert [total / 2000 for total in totals] == pytest.approx(weights, abs=0.05)


def test_what_was_done_is_counted_in_the_log():
    rows = [row(number, 1.0) for number in range(4)] + [row(9, None, "person")]
    weighted = weigh(rows, Train(person_weight=3), 0)
    assert [one.id for one in weighted.rows] == ["0", "1", "2", "3", "9", "9", "9"]
    assert weighted.said == "weighted by who labelled: 5 rows became 7 (4 rows once, 1 rows 3 times)"

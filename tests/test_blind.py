from __future__ import annotations

from collections import Counter

import pytest
from pairs_for_eyes import pair, planted, write_pairs

from cai_helpers.errors import CaiError
from cai_helpers.inspection.blind import (
    agreement,
    append_judgement,
    can_be_judged,
    draw_rows,
    read_judgements,
    side_on_the_left,
)
from cai_helpers.inspection.rows import read_rows


@pytest.fixture
def rows(workspace):
    write_pairs(workspace, [pair(number, 0.0, float(number - 50.5)) for number in range(100)])
    return read_rows(workspace)


def test_only_pairs_with_two_texts_and_a_winner_are_drawn(workspace):
    failed = pair(9, 0.0, outcome="unparsed", chosen=None).model_copy(update={"revised_score": None})
    write_pairs(workspace, [*planted(2), failed, pair(8, 1.0, 1.0)])
    rows = read_rows(workspace)
    assert [row.pair.id for row in rows if can_be_judged(row)] == ["id1", "id2", "id98"]
    assert sorted(draw_rows(rows, 20, seed=0)) == [0, 1, 3]


def test_a_draw_can_be_repeated_and_a_second_round_goes_on(rows):
    first = draw_rows(rows, 20, seed=0)
    assert draw_rows(rows, 20, seed=0) == first
    assert draw_rows(rows, 20, seed=1) != first
    second = draw_rows(rows, 20, seed=0, judged=[rows[place].key for place in first])
    assert draw_rows(rows, 40, seed=0) == first + second
    assert len(set(first + second)) == 40


def test_sides_are_shuffled_by_key(rows):
    sides = [side_on_the_left(row.key, seed=0) for row in rows]
    assert sides == [side_on_the_left(row.key, seed=0) for row in rows]
    assert 30 < Counter(sides)["revision"] < 70


def test_agreement_counts_judgements_against_the_sign_of_delta(workspace):
    write_pairs(workspace, planted(6))  # deltas +1 −2 +3 −4 +5 −6
    rows = read_rows(workspace)
    said = ["revision", "draft", "draft", "draft", "skip", "revision"]
    judgements = [append_judgement(workspace.blind, row, one, "revision") for row, one in zip(rows, said, strict=False)]
    found = agreement(judgements, rows)
    assert (found.agreed, found.judged, found.skipped, found.left) == (3, 5, 1, 2)
    assert found.disagreed == [rows[2].key, rows[5].key]
    assert found.lines()[0] == "You agree with the reward model on 3 of 5 rows: 60 % (23–88 %)."
    assert "could be a coin toss. 5 rows are a first check" in found.lines()[1]


@pytest.mark.parametrize(
    ("agreed", "words"), [(19, "Better than a coin toss"), (11, "could be a coin toss"), (2, "Worse than a coin toss")]
)
def test_the_result_says_what_it_means(rows, workspace, agreed, words):
    judgements = []
    for place, row in enumerate(rows[60:80]):
        better = "revision" if place < agreed else "draft"
        judgements.append(append_judgement(workspace.blind, row, better, "draft"))
    found = agreement(judgements, rows)
    assert found.agreed == agreed
    assert words in found.lines()[1]
    assert "20 rows are a first check" in found.lines()[1]


def test_another_reward_model_is_measured_by_the_same_judgements(workspace):
    write_pairs(workspace, [pair(1, 0.0, 1.0), pair(2, 0.0, 1.0)])
    judgements = [append_judgement(workspace.blind, row, "revision", "draft") for row in read_rows(workspace)]
    assert agreement(judgements, read_rows(workspace)).agreed == 2
    write_pairs(workspace, [pair(1, 0.0, -1.0), pair(2, 0.0, 0.0)])
    rescored = agreement(judgements, read_rows(workspace))
    assert (rescored.agreed, rescored.judged) == (0, 1)  # the second is a tie now


def test_the_later_judgement_of_a_pair_counts_and_survives_a_restart(workspace):
    write_pairs(workspace, planted(1))
    row = read_rows(workspace)[0]
    for better in ("draft", "revision"):
        append_judgement(workspace.blind, row, better, "draft")
    assert [one.better for one in read_judgements(workspace.blind)] == ["revision"]
    assert len(workspace.blind.read_text(encoding="utf-8").splitlines()) == 2


def test_nothing_judged_is_nothing_to_report(rows):
    assert agreement([], rows).lines() == ["Nothing was judged, so there is nothing to report."]


def test_a_broken_line_is_named(workspace):
    workspace.blind.parent.mkdir(parents=True)
    workspace.blind.write_text('{"key": "k"}\n', encoding="utf-8")
    with pytest.raises(CaiError, match=r"blind.jsonl, row 1"):
        read_judgements(workspace.blind)

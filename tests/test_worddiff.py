from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cai_helpers.inspection.worddiff import MOST_WORDS, Piece, WordDiff, word_diff


def changed(pieces: list[Piece]) -> list[str]:
    return [piece.text for piece in pieces if piece.changed]


def test_words_that_differ_are_marked_on_their_side():
    diff = word_diff("Take the red pin and turn it.", "Take the red key and turn it.")
    assert changed(diff.before) == ["pin"]
    assert changed(diff.after) == ["key"]
    assert diff.shared == 1 - 2 / 16


def test_an_insertion_marks_nothing_on_the_other_side():
    diff = word_diff("Boil the egg for nine minutes.", "Boil the egg slowly for nine minutes.")
    assert changed(diff.before) == []
    assert changed(diff.after) == ["slowly"]


def test_a_word_or_two_in_common_between_two_changes_are_no_island():
    diff = word_diff("hide a spoon in the oven now", "surprise me with the dinner today")
    assert changed(diff.before) == ["hide a spoon in the oven now"]
    assert changed(diff.after) == ["surprise me with the dinner today"]
    assert diff.shared == 0


def test_white_space_and_the_same_text_are_no_difference():
    diff = word_diff("one  two\nthree", "one two three")
    assert changed(diff.before) + changed(diff.after) == []
    assert diff.shared == 1
    assert word_diff("", "") == WordDiff([Piece("", False)], [Piece("", False)], 1.0)


def test_texts_too_long_to_compare_come_back_whole_and_unmarked():
    long, other = "alpha " * (MOST_WORDS + 1), "beta " * 3
    assert word_diff(long, other) == WordDiff([Piece(long, False)], [Piece(other, False)], None)


def test_long_texts_that_differ_in_one_place_are_still_compared():
    words = [f"w{number}" for number in range(20_000)]
    diff = word_diff(" ".join(words), " ".join([*words[:9000], "new", *words[9001:]]))
    assert changed(diff.before) == ["w9000"]
    assert changed(diff.after) == ["new"]


@settings(max_examples=60)
@given(st.text(max_size=60), st.text(max_size=60))
def test_the_pieces_of_a_side_are_that_side(before, after):
    diff = word_diff(before, after)
    assert "".join(piece.text for piece in diff.before) == before
    assert "".join(piece.text for piece in diff.after) == after


@pytest.mark.parametrize("filling", ["\n", " ", "word ", ".\n", "a", "a b "], ids=repr)
def test_a_long_hostile_text_is_compared_in_no_time(filling):
    text = (filling * 100_000)[:100_000]
    started = time.process_time()
    for before, after in (
        (text, f"{text}x"),
        ("No.", text),
        (f"{text} yes", f"no {text}"),
        (text, f"{text[:50_000]} but {text}"),
    ):
        word_diff(before, after)
    assert time.process_time() - started < 1

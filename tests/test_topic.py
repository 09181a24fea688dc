"""Topic fit: near 100 % for answers to the point, near 50 % for answers to somebody else."""

import random

from cai_helpers.measures.topic import topic_fit

THINGS = [
    f"{first}{second}" for first in ("gar", "vio", "lan", "buc", "per") for second in ("den", "lin", "tern", "ket")
]
PROMPTS = [f"How do I carry the {thing} up to the house?" for thing in THINGS]
ANSWERS = [f"You take the {thing} by both hands and walk up the hill." for thing in THINGS]


def test_answers_to_the_point_fit_their_prompts():
    assert topic_fit(PROMPTS, ANSWERS).value > 0.95


def test_answers_to_another_prompt_fit_by_chance():
    draw = random.Random(1)
    prompts, answers = PROMPTS * 20, ANSWERS * 20
    draw.shuffle(answers)
    assert 0.4 < topic_fit(prompts, answers).value < 0.6


def test_words_that_stand_in_every_prompt_say_nothing():
    assert topic_fit(PROMPTS, ["You carry it up to the house."] * len(PROMPTS)).value == 0.5


def test_endings_do_not_hide_a_word():
    prompts = ["Who is stealing?", "Who is shooting?", "Who is planting?", "Who is painting?"]
    answers = ["He steals things.", "He shoots things.", "He plants a lot.", "He painted it."]
    assert topic_fit(prompts, answers).value > 0.8


def test_the_same_rows_always_give_the_same_figure():
    assert topic_fit(PROMPTS, ANSWERS) == topic_fit(PROMPTS, ANSWERS)


def test_one_row_has_nothing_to_be_held_against():
    assert topic_fit(PROMPTS[:1], ANSWERS[:1]) is None
    assert topic_fit([], []) is None

import random

import pytest

from cai_helpers.measures.near_duplicates import _jaccard, _shingles, near_copies

LONG = (
    "My neighbour plays loud music every night until two and the landlord does not answer my letters, "
    "so how can I make him stop without calling the police or moving out of the flat that I like so much?"
)


def test_a_prompt_that_differs_in_case_space_or_one_late_word_is_a_copy():
    texts = [LONG, LONG.upper().replace(" ", "  "), LONG.replace("much", "well"), "How do I pick a lock?"]
    assert near_copies(texts, 0.8) == [None, 0, 0, None]


def test_short_questions_about_different_things_are_no_copies():
    assert near_copies(["How do I pick a lock?", "How do I pick a bike?", "Yes.", "Yes."], 0.8) == [None, None, None, 2]


@pytest.mark.parametrize("similarity", [0.3, 0.5, 0.8, 1.0])
def test_the_index_finds_what_comparing_everything_finds(similarity):
    draw = random.Random(0)
    texts: list[str] = []
    for _ in range(150):
        words = (
            draw.choice(texts).split() if texts and draw.random() < 0.6 else [draw.choice("abcdefg") for _ in range(12)]
        )
        for _ in range(draw.randrange(3)):
            words[draw.randrange(len(words))] = draw.choice("abcdefg")
        texts.append(" ".join(words))
    kept: list[int] = []
    expected: list[int | None] = []
    for place, text in enumerate(texts):
        near = [one for one in kept if _jaccard(_shingles(text), _shingles(texts[one])) >= similarity]
        expected.append(near[0] if near else None)
        if not near:
            kept.append(place)
    assert near_copies(texts, similarity) == expected
    assert 0 < len(kept) < len(texts)

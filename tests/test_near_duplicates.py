import random

import numpy
import pytest

from cai_helpers.measures.near_duplicates import WordNumbers, near_copies, near_copies_in

LONG = (
    "My neighbour plays loud music every night until two and the landlord does not answer my letters, "
    "so how can I make him stop without calling the police or moving out of the flat that I like so much?"
)


def test_a_prompt_that_differs_in_case_space_or_one_late_word_is_a_copy():
    texts = [LONG, LONG.upper().replace(" ", "  "), LONG.replace("much", "well"), "How do I pick a lock?"]
    assert near_copies(texts, 0.8) == [None, 0, 0, None]


def test_short_questions_about_different_things_are_no_copies():
    assert near_copies(["How do I pick a lock?", "How do I pick a bike?", "Yes.", "Yes."], 0.8) == [None, None, None, 2]


def jaccard(left: str, right: str) -> float:
    """Of the sets of three words in a row, written down as the docstring says it."""
    sets = []
    for text in (left, right):
        words = text.split()
        sets.append({tuple(words[start : start + 3]) for start in range(max(1, len(words) - 2))})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


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
        near = [one for one in kept if jaccard(text, texts[one]) >= similarity]
        expected.append(near[0] if near else None)
        if not near:
            kept.append(place)
    assert near_copies(texts, similarity) == expected
    assert 0 < len(kept) < len(texts)


def test_texts_of_no_word_one_word_and_two_words_are_compared_as_wholes():
    assert near_copies([], 0.8) == []
    assert near_copies(["", "a", "a b", "a b c", "b", " ", "A", "a  B", "A b c"], 0.8) == [
        None, None, None, None, None, 0, 1, 2, 3,
    ]  # fmt: skip


def test_the_order_in_which_texts_are_compared_is_not_that_in_which_they_came():
    draw = random.Random(1)
    texts = [" ".join(draw.choices("abc", k=draw.randrange(1, 9))) for _ in range(60)]
    numbers = WordNumbers()
    for text in texts:
        numbers.add(text)
    order = numpy.array(draw.sample(range(60), 60))
    copies = near_copies_in(numbers, order, 0.5)
    assert copies == near_copies([texts[place] for place in order], 0.5)
    assert 0 < copies.count(None) < 60

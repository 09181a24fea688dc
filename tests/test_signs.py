"""The plain words that are looked for before an expression: no match is without one, or the quick way decides otherwise."""

import random
import re
from re import _constants as code
from re import _parser as parser

import pytest

from cai_helpers.critique.meta import TALK, TALK_SIGNS, is_meta_commentary
from cai_helpers.measures.refusal_cues import CUES, SIGNS, cues_of

_DRAWN = 4000  # texts an expression


def drawn(nodes, draw: random.Random) -> str:
    """A text that the parsed expression takes, any of its ways as likely as another; assertions are not looked at."""
    return "".join(_drawn_node(kind, value, draw) for kind, value in nodes)


def _drawn_node(kind, value, draw: random.Random) -> str:
    if kind is code.LITERAL:
        return chr(value)
    if kind is code.ANY:
        return " "  # so that a word may end before it
    if kind is code.IN:
        return _drawn_node(*draw.choice(value), draw)
    if kind is code.CATEGORY:
        return {code.CATEGORY_SPACE: " ", code.CATEGORY_WORD: "z", code.CATEGORY_NOT_WORD: ","}[value]
    if kind is code.BRANCH:
        return drawn(draw.choice(value[1]), draw)
    if kind is code.SUBPATTERN:
        return drawn(value[-1], draw)
    if kind is code.MAX_REPEAT:
        least, most, part = value
        return "".join(drawn(part, draw) for _ in range(draw.randint(least, min(most, least + 2))))
    assert kind in (code.AT, code.ASSERT, code.ASSERT_NOT), kind
    return ""


def texts_of(expression: re.Pattern[str]) -> list[str]:
    draw, nodes = random.Random(0), parser.parse(expression.pattern, expression.flags & ~re.UNICODE)
    found = [drawn(nodes, draw).lower() for _ in range(_DRAWN)]
    matching = [text for text in found if expression.search(text)]
    assert len(matching) > _DRAWN / 4  # else assertions turn most away, and little was tried
    return matching


@pytest.mark.parametrize("name", SIGNS)
def test_every_sentence_with_a_cue_holds_one_of_its_signs(name):
    without = [text for text in texts_of(CUES[name]) if not any(sign in text for sign in SIGNS[name])]
    assert without == []


def test_all_critics_talk_holds_one_of_its_signs():
    texts = texts_of(TALK)
    without = [text for text in texts if not any(sign in " ".join(text.split()) for sign in TALK_SIGNS)]
    assert without == []


def test_the_signs_alone_decide_nothing():
    assert cues_of("my cat can not swim, and it is not unable to") == frozenset()
    assert not is_meta_commentary("Cats see better in the dark than dogs; a change of food can help.")


@pytest.mark.parametrize("text", ["So: the reviſed answer is below.", "So: the Revısed text.", "So: THİS CRİTIQUE"])
def test_letters_that_count_as_plain_ones_only_where_case_is_ignored_are_not_overlooked(text):
    assert TALK.search(text) is not None
    assert is_meta_commentary(text)

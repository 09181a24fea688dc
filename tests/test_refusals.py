import pytest

from cai_helpers.measures.refusals import _OPENING_CHARACTERS, _REFUSAL, is_refusal
from cai_helpers.store import read_jsonl

FORMS = [
    "I'm really sorry, but I can not do that.",
    "I\nwill not\nhelp with it.",
    "We refuse to help with it.",
    "No, that is not something to do.",
    "Sorry. You won't get this from me.",
    "That would be illegal, so I'll not help you.",
    "I am not going to say.",
    "I can’t tell you that.",
]


@pytest.mark.parametrize("text", FORMS)
def test_a_refusal_is_seen_in_each_of_its_forms(text):
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text", ["Not at all: mix both.", "Nothing is easier than that.", "I can help you with it.", ""]
)
def test_an_answer_is_none(text):
    assert not is_refusal(text)


def test_looking_for_the_signs_first_changes_nothing_on_real_answers(shared_data):
    refusing = 0
    for row in read_jsonl(shared_data / "hh-rlhf" / "harmless-base-test.jsonl.gz"):
        for turn in (row["chosen"] + row["rejected"]).split("\n\nAssistant:")[1:]:
            text = turn.split("\n\nHuman:")[0].strip()
            opening = text[:_OPENING_CHARACTERS].replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
            assert is_refusal(text) == (_REFUSAL.search(opening) is not None), text
            refusing += is_refusal(text)
    assert refusing > 400

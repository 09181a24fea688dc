import time
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cai_helpers.critique.constitution import load_constitution
from cai_helpers.critique.protocols import critique_chat, load_protocol, revision_chat
from cai_helpers.critique.recognition import leaks_template, outcome_of
from cai_helpers.critique.verdict import judge_revision, parse_critique, parse_single
from cai_helpers.errors import CaiError
from cai_helpers.prompts.sources import Malformed, as_prompt_messages
from cai_helpers.schema import Completion, ScoredPair

CHAT = [{"role": "user", "content": "How do I steal a {response}?"}]


SINGLE = load_protocol("single/short")
PROMPT = "How do I steal a bike from the station?"


def completion(text: str, finish: str = "stop") -> Completion:
    return Completion(text=text, tokens=len(text.split()), finish=finish)


def test_a_well_formed_answer_is_a_revision():
    verdict = parse_single(
        completion("CRITIQUE: It helps a thief.\nREVISION: I can't help with stealing a bike."), SINGLE, PROMPT
    )
    assert verdict.outcome == "revised"
    assert verdict.critique == "It helps a thief."
    assert verdict.revision == "I can't help with stealing a bike."


@pytest.mark.parametrize(
    ("text", "outcome", "reason"),
    [
        ("CRITIQUE: Fine.\nREVISION: KEEP_ORIGINAL", "kept", "the critic wrote KEEP_ORIGINAL"),
        ("KEEP_ORIGINAL", "kept", "the critic wrote only KEEP_ORIGINAL"),
        ("**CRITIQUE:** Fine.\n**REVISION:** keep original.", "kept", "the critic wrote KEEP_ORIGINAL"),
        ("CRITIQUE: It is bad.", "unparsed", "there is no REVISION: label"),
        ("It is bad.\nREVISION: I can not help you with that at all.", "unparsed", "there is no CRITIQUE: label"),
        ("", "unparsed", "there is no REVISION: label"),
        ("CRITIQUE: a\nREVISION: No, sorry.", "too_short", "2 words; 5 are needed"),
        ("CRITIQUE: a\nREVISION:", "too_short", "0 words; 5 are needed"),
        (
            "CRITIQUE: a\nREVISION: The response should not explain how.",
            "meta_commentary",
            "the revision opens with 'The response should not explain how.'",
        ),
    ],
)
def test_every_other_form_has_its_outcome_and_reason(text, outcome, reason):
    verdict = parse_single(completion(text), SINGLE, PROMPT)
    assert (verdict.outcome, verdict.reason, verdict.revision) == (outcome, reason, "")


@pytest.mark.parametrize(
    "opening",
    [
        "I could say that this is wrong.",
        "I would revise the answer as follows.",
        "I should say it more kindly to you.",
        "I might change the tone of the reply.",
        "The response should be kind and short.",
        "The answer could mention a legal way.",
        "The response would be better without it.",
        "This response directly responds to the user.",
        "This answer is clear and quite concise.",
        "Instead of explaining it, one can refuse.",
        "Rather than giving steps, say why not.",
        "A better response would be to refuse this.",
        "Here is a revised version of the response:",
        "Here's an improved answer for the user:",
        "The assistant should not have answered that.",
    ],
)
def test_a_revision_that_talks_about_a_response_is_meta_commentary(opening):
    assert judge_revision("a", completion(opening), SINGLE, PROMPT).outcome == "meta_commentary"


@pytest.mark.parametrize(
    "revision",
    [
        "I would love to help you bake a cake today.",
        "I could not find my bike lock either, so ask a locksmith.",
        "This is how you plant a rose in spring.",
        "The answering machine has a red button.",
        "Here is a recipe for bread that always works.",
        "I can't help with that, but I can explain how locks work.",
    ],
)
def test_an_ordinary_opening_is_not_meta_commentary(revision):
    assert judge_revision("a", completion(revision), SINGLE, PROMPT).outcome == "revised"


def test_an_output_cut_off_at_the_limit_is_truncated_not_revised():
    text = "CRITIQUE: It helps.\nREVISION: I can't help you with that but I"
    assert parse_single(completion(text, "length"), SINGLE, PROMPT).outcome == "truncated"
    assert parse_single(completion("CRITIQUE: It goes on and", "length"), SINGLE, PROMPT).outcome == "truncated"


def test_a_critique_of_two_steps_settles_only_what_it_keeps():
    assert parse_critique(completion("KEEP_ORIGINAL")).outcome == "kept"
    assert parse_critique(completion("It helps a thief.")) is None
    assert parse_critique(completion("CRITIQUE:")).outcome == "unparsed"


def test_templates_show_the_critic_everything_and_expand_nothing_twice():
    principle = load_constitution().principles[0]
    for name in ("single/short", "single/full", "two_step/short", "two_step/full"):
        protocol = load_protocol(name)
        text = critique_chat(protocol, CHAT, "Cut the {principles}.", [principle])[0]["content"]
        assert "How do I steal a {response}?" in text
        assert "Cut the {principles}." in text
        assert f"- {principle.text}" in text
        if protocol.calls == 2:
            text = revision_chat(protocol, CHAT, "Cut it.", "It helps a thief.")[0]["content"]
            assert "It helps a thief." in text


def test_an_unknown_protocol_names_the_known_ones():
    with pytest.raises(CaiError, match="there is single/short, single/full, two_step/short, two_step/full"):
        load_protocol("single/long")


FRAGMENTS = st.sampled_from(
    [
        "CRITIQUE:",
        "REVISION:",
        "KEEP_ORIGINAL",
        "\n",
        " ",
        "**",
        "I can't help with that.",
        "{response}",
        "Revised response:",
    ]
)
OUTPUTS = st.one_of(
    st.text(max_size=200), st.lists(st.one_of(FRAGMENTS, st.text(max_size=20)), max_size=12).map("".join)
)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(OUTPUTS, st.sampled_from(["stop", "length"]))
def test_the_parser_never_raises_and_never_returns_an_empty_or_labelled_revision(text, finish):
    verdict = parse_single(completion(text, finish), SINGLE, PROMPT)
    assert verdict.reason
    assert (verdict.outcome == "revised") == bool(verdict.revision)
    if verdict.revision:
        assert len(verdict.revision.split()) >= 5
        assert "KEEP_ORIGINAL" not in verdict.revision
        assert "\nREVISION:" not in verdict.revision
        assert "\nCRITIQUE:" not in verdict.revision


@pytest.mark.parametrize(
    ("text", "outcome", "reason"),
    [
        ("CRITIQUE: a\nREVISION: how do I steal a bike, from the STATION?", "echo", "the revision repeats the prompt"),
        (
            "CRITIQUE: a\nREVISION: I can't help. REVISION: I can't help with that.",
            "echo",
            "the revision holds the label 'REVISION:'",
        ),
        (
            "CRITIQUE: a\nREVISION: Then write the improved response itself, or leave it.",
            "echo",
            "the revision repeats the instructions: 'then write the improved response itself'",
        ),
        ("CRITIQUE: a\nREVISION: I can't help " + "with that one " * 8, "degenerate", "the revision repeats itself"),
        (
            "I'm sorry, but I can't help with that request.",
            "refused_to_critique",
            "the critic answered \"I'm sorry, but I can't help\"",
        ),
        ("so so so so so so so so so so so so", "degenerate", "the critique repeats itself"),
    ],
)
def test_echoes_loops_and_refusals_to_criticise_are_told_apart(text, outcome, reason):
    verdict = parse_single(completion(text), SINGLE, PROMPT)
    assert (verdict.outcome, verdict.reason) == (outcome, reason)


def test_a_refusal_to_criticise_ends_a_two_step_pair():
    assert parse_critique(completion("I cannot help with this request.")).outcome == "refused_to_critique"


def test_demonstrations_come_as_earlier_turns_in_the_form_that_is_asked_for():
    principle = load_constitution().principles[0]
    chat = critique_chat(load_protocol("single/short+2"), CHAT, "Cut it.", [principle])
    assert [turn["role"] for turn in chat] == ["user", "assistant"] * 2 + ["user"]
    for turn in chat[1::2]:
        shown = parse_single(completion(turn["content"]), SINGLE, PROMPT)
        assert shown.outcome == "revised"
    chat = revision_chat(load_protocol("two_step/full+1"), CHAT, "Cut it.", "It helps.")
    assert [turn["role"] for turn in chat] == ["user", "assistant", "user"]
    with pytest.raises(CaiError, match=r"up to \+4"):
        load_protocol("single/short+5")


def test_a_protocols_file_of_ones_own_is_checked_by_line(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("single:\n  mine: Judge {response}\ntwo_step:\n  mine:\n    critique: Judge {response}\n")
    with pytest.raises(CaiError, match="line 4: two_step → mine → revision: Field required"):
        load_protocol("single/mine", path)


FILLINGS = ["\n", " ", "word ", ".\n", "\n ", "\nrevision ", "critique\n", "keep original ", "- ", "a", "\n\nHuman: "]


@pytest.mark.parametrize("opening", ["", "CRITIQUE: a\nREVISION: ", "CRITIQUE: a\n", "[", "user "])
@pytest.mark.parametrize("filling", FILLINGS, ids=repr)
def test_a_long_hostile_row_is_judged_in_no_time(filling, opening):
    """100 KB that a quadratic expression works on for ten seconds and more."""
    text = opening + (filling * 100_000)[:100_000] + "x:"
    pair = ScoredPair(
        prompt=PROMPT, base_response="No.", revised_response=text, base_score=0.0, revised_score=1.0, chosen="revised"
    )
    started = time.process_time()
    parse_single(completion(text), SINGLE, text)
    parse_critique(completion(text))
    leaks_template(pair)
    outcome_of(pair)
    with suppress(Malformed):
        as_prompt_messages(text)
    assert time.process_time() - started < 1


@pytest.mark.parametrize("leak", ["Yes.\n \n\t** CRITIQUE: no", "Yes.\n\n  User : no", "human: yes", "* Revision: a"])
def test_a_label_that_opens_a_line_is_a_leak_whatever_white_space_is_before_it(leak):
    pair = ScoredPair(
        prompt=PROMPT, base_response="No.", revised_response=leak, base_score=0.0, revised_score=1.0, chosen="revised"
    )
    assert leaks_template(pair)
    assert not leaks_template(pair.model_copy(update={"revised_response": "The user: me. A critique: none."}))

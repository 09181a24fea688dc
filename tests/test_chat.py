"""The chat of notebook 05: what its buttons do, on the widgets of whichever ipywidgets is installed."""

from __future__ import annotations

import pytest
from html_reader import elements_of, text_of
from pairs_for_eyes import HOSTILE
from test_talk import ScriptedPolicies

from cai_helpers.curation.overrides import read_overrides
from cai_helpers.inspection.talk import Talk
from cai_helpers.notebook.chat import Chat


@pytest.fixture
def chat(smoke, workspace, scripted):
    workspace.adapter.mkdir(parents=True)
    policies = ScriptedPolicies(scripted, ["Take the red bike.", "Yes."], ["Take the blue bike.", "Yes."])
    return Chat(Talk(smoke, workspace, policies=policies))


def ask(chat: Chat, question: str) -> None:
    chat.question.value = question
    chat.ask_button.click()


def test_before_a_question_nothing_can_be_chosen(chat):
    assert chat.page.value == ""
    assert chat.left_button.disabled
    assert chat.undo_button.disabled
    assert chat.go_on_button.disabled


def test_both_answers_are_shown_with_what_differs(chat):
    ask(chat, "May I take the bike?")
    shown = text_of(chat.page.value)
    for part in ("May I take the bike?", "Stage 2", "Stage 3", "Take the red bike.", "Take the blue bike."):
        assert part in shown
    assert "<del>red</del>" in chat.page.value
    assert "<ins>blue</ins>" in chat.page.value
    assert chat.question.value == ""


def test_a_click_keeps_the_pair_and_another_takes_it_back(chat, workspace):
    ask(chat, "May I take the bike?")
    chat.right_button.click()
    (standing,) = read_overrides(workspace.overrides).values()
    assert (standing.decision, standing.pair.revised_response) == ("revision", "Take the blue bike.")
    assert "✓ your choice" in text_of(chat.page.value)
    assert "Stage 3 is better here" in text_of(chat.status.value)
    assert chat.right_button.button_style == "primary"
    chat.undo_button.click()
    assert read_overrides(workspace.overrides) == {}
    assert chat.undo_button.disabled


def test_equal_answers_cannot_be_chosen_between(chat):
    ask(chat, "First?")
    ask(chat, "Is it so?")
    assert chat.left_button.disabled
    assert "Both said the same" in text_of(chat.status.value)


def test_a_conversation_goes_on_from_the_better_answer_and_can_be_left(chat):
    ask(chat, "May I take the bike?")
    chat.left_button.click()
    chat.go_on_button.click()
    ask(chat, "Is that fine?")
    shown = text_of(chat.page.value)
    assert shown.index("May I take the bike?") < shown.index("Take the red bike.") < shown.index("Is that fine?")
    chat.new_button.click()
    assert chat.talk.history == []
    assert chat.page.value == ""


def test_shuffled_answers_have_no_name_and_no_marks_until_one_is_chosen(chat):
    chat.shuffle.value = True
    ask(chat, "May I take the bike?")
    shown = text_of(chat.page.value)
    assert "Stage" not in shown
    assert "Left" in shown
    assert "<ins>" not in chat.page.value
    chat.left_button.click()
    assert "Stage 2" in text_of(chat.page.value)
    assert "Stage 3" in text_of(chat.page.value)


def test_switching_the_shuffle_off_does_not_name_the_answers_on_the_screen(chat):
    chat.shuffle.value = True
    ask(chat, "May I take the bike?")
    chat.shuffle.value = False
    chat._show()
    assert "Stage" not in text_of(chat.page.value)


def test_a_mistake_is_told_on_the_screen(chat):
    ask(chat, "   ")
    assert "There is no question" in text_of(chat.status.value)
    assert not chat.ask_button.disabled


def test_what_becomes_of_a_choice_is_told(chat):
    told = text_of(chat.box.children[-1].value)
    for part in ("pairs/overrides.jsonl", "cai curate", "train.person_weight", "would spoil the evaluation"):
        assert part in told


def test_text_that_wants_to_run_stays_text(smoke, workspace, scripted):
    workspace.adapter.mkdir(parents=True)
    chat = Chat(Talk(smoke, workspace, policies=ScriptedPolicies(scripted, [HOSTILE], [f"{HOSTILE} and more"])))
    ask(chat, HOSTILE)
    assert {"img", "script"} & {tag for tag, *_ in elements_of(chat.page.value)} == set()

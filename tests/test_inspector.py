"""What the buttons do, on the widgets of whichever ipywidgets is installed. The browser has tests of its own."""

from __future__ import annotations

import json

import ipywidgets
import pytest
from html_reader import elements_of, text_of, texts_of
from pairs_for_eyes import HOSTILE, pair, planted, write_pairs, write_traces

from cai_helpers.curation.overrides import append_override, read_overrides
from cai_helpers.errors import CaiError
from cai_helpers.notebook import inspector as inspector_module
from cai_helpers.notebook import widgets
from cai_helpers.notebook.inspector import Inspector
from cai_helpers.notebook.markup import sendable
from cai_helpers.notebook.pair_html import pair_html
from cai_helpers.store import read_jsonl, write_jsonl


@pytest.fixture
def pairs(workspace):
    return write_pairs(workspace, planted())


@pytest.fixture
def inspector(workspace, pairs):
    return Inspector(workspace)


def number(inspector: Inspector) -> str:
    return text_of(inspector.counter.value)


# --- looking ---


def test_a_row_shows_all_there_is_to_know(inspector):
    shown = text_of(inspector.page.value)
    for part in ("Question 1", "Draft number 1", "red", "blue", "reward +0.00", "reward +1.00", "delta+1.00"):
        assert part in shown
    assert "principleWhen a request is unclear" in shown
    assert "HE005" not in shown
    assert "When a request is unclear" in inspector.page.value  # the principle's text, on hovering
    assert "<del>red</del>" in inspector.page.value
    assert "<ins>blue</ins>" in inspector.page.value


def test_all_turns_of_the_prompt_are_shown(workspace):
    turns = [{"role": role, "content": f"Turn {place}."} for place, role in enumerate(("user", "assistant", "user"))]
    write_pairs(workspace, [pair(1, 0.0, 1.0, messages=turns)])
    shown = text_of(Inspector(workspace).page.value)
    assert shown.index("Turn 0.") < shown.index("Turn 1.") < shown.index("Turn 2.")


def test_a_pair_without_a_revision_says_why(inspector):
    inspector.filters.outcome.value = "kept"
    shown = text_of(inspector.page.value)
    assert "There is no revision" in shown
    assert "KEEP_ORIGINAL" in shown
    assert inspector.revision_button.disabled
    assert inspector.draft_button.disabled
    assert not inspector.drop_button.disabled


def test_next_previous_jump_and_random_move_through_the_rows(inspector):
    assert number(inspector) == "1 of 8"
    inspector.previous()
    assert number(inspector) == "1 of 8"
    inspector.next_button.click()
    assert number(inspector) == "2 of 8"
    inspector.jump.value = "7"
    assert number(inspector) == "7 of 8"
    assert inspector.jump.value == ""
    inspector.jump.value = "99"
    assert number(inspector) == "8 of 8"
    assert inspector.next_button.disabled
    inspector.random()
    assert number(inspector) != "8 of 8"
    inspector.jump.value = "first"
    assert "'first' is no row number" in text_of(inspector.status.value)


def test_filters_and_order_choose_the_rows_and_the_counter_says_how_many(inspector):
    inspector.filters.chosen.value = "base"
    assert number(inspector) == "1 of 4 (of 8)"
    inspector.filters.order.value = "smallest delta first"
    assert inspector.row.pair.id == "id6"
    inspector.filters.text.value = "question 2"
    assert number(inspector) == "1 of 1 (of 8)"
    inspector.filters.text.value = "nowhere"
    assert number(inspector) == "none of 8"
    assert "No pair passes" in inspector.page.value
    assert inspector.drop_button.disabled
    inspector.filters.reset()
    assert number(inspector) == "1 of 8"
    assert inspector.filters.text.value == ""


def test_the_delta_slider_spans_the_data_and_at_full_width_hides_nothing(workspace):
    failed = pair(9, 0.0, outcome="unparsed", chosen=None).model_copy(update={"revised_score": None})
    write_pairs(workspace, [failed, *planted(2)])
    inspector = Inspector(workspace)
    assert (inspector.filters.delta.min, inspector.filters.delta.max) == (-2.0, 1.0)
    assert number(inspector) == "1 of 5"
    inspector.filters.delta.value = (-2.0, -1.0)
    assert number(inspector) == "1 of 1 (of 5)"
    assert inspector.row.pair.id == "id2"


def test_a_row_on_the_screen_stays_when_a_filter_lets_it_pass(inspector):
    inspector.jump.value = "4"
    inspector.filters.chosen.value = "base"
    assert inspector.row.pair.id == "id4"
    assert number(inspector) == "2 of 4 (of 8)"


def test_the_critics_words_come_when_asked_for_and_only_then_is_the_file_read(workspace, pairs, monkeypatch):
    read = []
    inspector = Inspector(workspace)
    write_traces(workspace, pairs[:1])
    monkeypatch.setattr(
        "cai_helpers.inspection.rows.read_jsonl", lambda path: read.append(path) or list(read_jsonl(path))
    )
    assert inspector.critic.value == ""
    inspector.critic_toggle.value = True
    assert "RAW Critique 1." in text_of(inspector.critic.value)
    inspector.next()
    assert "Critique 2." in text_of(inspector.critic.value)
    assert "raw output is not at hand" in text_of(inspector.critic.value)
    assert read == [workspace.traces]
    inspector.critic_toggle.value = False
    assert inspector.critic.value == ""


def test_a_file_from_elsewhere_is_inspected_and_its_decisions_go_to_the_workspace(workspace, tmp_path):
    file = tmp_path / "old.jsonl"
    write_jsonl(
        file,
        [{"prompt": "Hi?", "base_response": "Yes.", "revised_response": "No.", "base_score": 1, "revised_score": 0,
          "chosen": "base", "critic_notes": None, "principle_ids": "HP001"}],
    )  # fmt: skip
    inspector = Inspector(workspace, file)
    assert "principleHP001" in text_of(inspector.page.value)
    inspector.decide("revision")
    assert [one.decision for one in read_overrides(workspace.overrides).values()] == ["revision"]


# --- deciding ---


@pytest.mark.parametrize("name", ["revision", "draft", "drop"])
def test_a_button_writes_its_decision_at_once_and_the_row_shows_it(inspector, workspace, name):
    inspector.note.value = "seen & judged"
    getattr(inspector, f"{name}_button").click()
    (line,) = read_jsonl(workspace.overrides)
    assert (line["id"], line["key"], line["decision"], line["note"]) == (
        "id1",
        inspector.row.key,
        name,
        "seen & judged",
    )
    assert "seen & judged" in text_of(inspector.page.value)
    assert getattr(inspector, f"{name}_button").button_style == "primary"
    assert "1 decision stands" in text_of(inspector.status.value)


def test_a_note_belongs_to_the_row_it_was_typed_for(inspector, workspace):
    inspector.note.value = "about the first"
    inspector.next()
    inspector.decide("drop")
    assert [line["note"] for line in read_jsonl(workspace.overrides)] == [""]


def test_decisions_survive_a_restart(inspector, workspace):
    inspector.next()
    inspector.decide("draft")
    again = Inspector(workspace)
    assert "you" not in texts_of(again.page.value)
    again.next()
    assert "draft is better" in text_of(again.page.value)
    assert "✓ your choice" in text_of(again.page.value)


def test_undo_takes_back_the_last_decision_of_this_row_and_appends(inspector, workspace):
    inspector.decide("revision")
    inspector.decide("drop")
    inspector.next()
    assert inspector.undo_button.disabled
    inspector.previous()
    inspector.undo_button.click()
    assert "revision is better" in text_of(inspector.page.value)
    inspector.undo_button.click()
    assert inspector.undo_button.disabled
    assert read_overrides(workspace.overrides) == {}
    assert [line["decision"] for line in read_jsonl(workspace.overrides)] == ["revision", "drop", "undo", "undo"]


def test_an_edited_revision_is_saved_and_shown_with_its_changes(inspector, workspace):
    inspector.edit_button.click()
    assert inspector.editor.value == inspector.row.pair.revised_response
    assert inspector.edit_box.layout.display == ""
    assert inspector.next_button.disabled  # else the unsaved text would be lost
    inspector.editor.value += " Slowly."
    inspector.save_button.click()
    (standing,) = read_overrides(workspace.overrides).values()
    assert (standing.decision, standing.edited) == ("edit", "Draft number 1 says take the blue pin. Slowly.")
    assert "<ins>Slowly.</ins>" in inspector.page.value
    assert inspector.edit_box.layout.display == "none"
    assert not inspector.next_button.disabled
    inspector.edit()
    assert inspector.editor.value.endswith("Slowly.")


@pytest.mark.parametrize("text", ["", "  \n", "Draft number 1 says take the red pin. "])
def test_an_edit_that_prefers_nothing_is_not_saved(inspector, workspace, text):
    inspector.edit()
    inspector.editor.value = text
    inspector.save_edit()
    assert not workspace.overrides.exists()
    assert inspector.edit_box.layout.display == ""
    inspector.cancel_edit()
    assert inspector.edit_box.layout.display == "none"
    assert not inspector.drop_button.disabled


def test_decisions_made_since_the_last_curation_are_announced(inspector, workspace, smoke):
    from cai_helpers.stages.curate import curate_pairs

    curate_pairs(smoke, workspace)
    append_override(workspace.overrides, inspector.row.key, "id1", "drop")
    assert "curate again" in text_of(Inspector(workspace).status.value)


def test_an_error_of_a_handler_is_shown(inspector, workspace):
    workspace.overrides.mkdir(parents=True)  # as bad as a full disk
    inspector.drop_button.click()
    assert "overrides.jsonl" in text_of(inspector.status.value)
    assert "cai-problem" in inspector.status.value


def test_a_constitution_that_cannot_be_read_is_said_and_the_pairs_are_shown(workspace, pairs, smoke):
    own = smoke.generate.model_copy(update={"constitution": "gone.yaml"})
    workspace.save_settings(smoke.model_copy(update={"generate": own}))
    inspector = Inspector(workspace)
    assert "gone.yaml" in text_of(inspector.status.value)
    assert "Question 1" in text_of(inspector.page.value)


# --- text stays text ---


def test_hostile_text_stays_text_wherever_it_stands(inspector, workspace, pairs):
    write_traces(workspace, [pairs[-1].model_copy(update={"critic_notes": HOSTILE})])
    inspector.jump.value = "8"
    assert inspector.row.pair.id == "id98"
    inspector.critic_toggle.value = True
    inspector.note.value = HOSTILE
    inspector.edit()
    inspector.editor.value = f"{HOSTILE} edited"
    inspector.save_edit()
    pages = [inspector.page.value, inspector.critic.value, inspector.status.value]
    inspector.jump.value = HOSTILE
    pages.append(inspector.status.value)
    inspector.open_blind()
    for page in [*pages, pair_html(inspector.row, None, {HOSTILE: HOSTILE})]:
        assert {"img", "script"} & set(elements_of(page)) == set()
    assert text_of(inspector.page.value).count("window.hit=1") >= 2 * 8


def test_half_a_surrogate_pair_can_be_sent_to_the_browser(workspace):
    broken = "half \ud83d a pair"
    row = pair(1, 0.0, 1.0, base_response=broken, revised_response=f"{broken} more", category=broken)
    write_pairs(workspace, [row])
    inspector = Inspector(workspace)
    inspector.edit()
    for value in (inspector.page.value, inspector.editor.value, *inspector.filters.category.options[1]):
        sendable(value).encode()
    json.dumps([inspector.page.value, inspector.editor.value], ensure_ascii=False).encode()
    assert sendable("\ud83d\ude00 whole") == "😀 whole"


# --- the blind round ---


def test_a_blind_row_shows_nothing_that_tells_the_sides_apart(inspector, workspace):
    inspector.critic_toggle.value = True
    inspector.open_blind()
    inspector.blind.start()
    seen = set()
    while inspector.blind.position < len(inspector.blind.drawn):
        row = inspector.blind.row
        shown = text_of(inspector.blind.page.value)
        if row.pair.id != "id98":
            left, right = shown.index("Left"), shown.index("Right")
            assert left < right
            first = "blue" if inspector.blind.left_side == "revision" else "red"
            assert first in shown[left:right]
            seen.add(first)
        lowered = inspector.blind.page.value.lower().replace("draft number", "")
        assert [hint for hint in ("reward", "revision", "draft", "delta", "<ins", "<del", "critique", "he005", "higher")
                if hint in lowered] == []  # fmt: skip
        inspector.blind.skip()
    assert seen == {"blue", "red"}
    assert widgets_on(inspector.box) & {inspector.page, inspector.critic, inspector.filters.outcome} == set()


def widgets_on(box: ipywidgets.Widget) -> set[ipywidgets.Widget]:
    return {box}.union(*(widgets_on(child) for child in getattr(box, "children", ())))


def test_a_blind_round_tells_the_agreement_and_keeps_its_judgements_apart(inspector, workspace):
    inspector.open_blind()
    inspector.blind.start()
    for _ in range(len(inspector.blind.drawn)):
        inspector.blind.left() if inspector.blind.left_side == "revision" else inspector.blind.right()
    result = text_of(inspector.blind.page.value)
    assert "You agree with the reward model on 4 of 7 rows: 57 % (25–84 %)." in result  # deltas +1 −2 +3 −4 +5 −6 +0.5
    assert "7 rows are a first check" in result
    assert {line["better"] for line in read_jsonl(workspace.blind)} == {"revision"}
    assert not workspace.overrides.exists()
    inspector.blind.look()
    assert sorted(inspector.rows[place].pair.id for place in inspector.selected) == ["id2", "id4", "id6"]
    inspector.filters.reset()
    assert number(inspector) == "2 of 8"


def test_blind_judgements_become_decisions_only_when_asked_and_never_replace_one(inspector, workspace):
    inspector.decide("drop")
    inspector.open_blind()
    inspector.blind.start()
    for _ in range(len(inspector.blind.drawn) - 1):
        inspector.blind.right()
    inspector.blind.skip()
    inspector.blind.keep_button.click()
    standing = read_overrides(workspace.overrides)
    assert standing[inspector.rows[0].key].decision == "drop"
    judged = {line["key"]: line["better"] for line in read_jsonl(workspace.blind)}
    expected = {key: better for key, better in judged.items() if better != "skip"} | {inspector.rows[0].key: "drop"}
    assert {key: one.decision for key, one in standing.items()} == expected
    assert inspector.blind.keep_button.disabled
    inspector.blind.close()
    assert inspector.decisions == standing


def test_a_round_can_be_stopped_a_judgement_corrected_and_the_next_round_goes_on(inspector, workspace):
    inspector.open_blind(3)
    inspector.blind.start()
    first = inspector.blind.row.key
    inspector.blind.left()
    inspector.blind.back()
    assert inspector.blind.row.key == first
    inspector.blind.right()
    inspector.blind.finish()
    assert "of 1 rows" in text_of(inspector.blind.page.value)
    inspector.blind.introduce()
    inspector.blind.start()
    assert first not in {inspector.rows[place].key for place in inspector.blind.drawn}
    inspector.blind.left()
    inspector.blind.finish()
    assert "All rounds together" in text_of(inspector.blind.page.value)


def test_pairs_that_cannot_be_compared_cannot_be_judged_blind(workspace):
    write_pairs(workspace, [pair(1)])
    inspector = Inspector(workspace)
    inspector.open_blind()
    inspector.blind.start()
    assert "No row is left to judge" in text_of(inspector.blind.status.value)


# --- from a notebook ---


def test_one_line_shows_the_inspector_or_a_blind_round(workspace, pairs, monkeypatch):
    shown = []
    monkeypatch.setattr(inspector_module, "display", shown.append)
    widgets.inspect_pairs(workspace)
    widgets.blind_test(workspace, rows=5)
    assert ["8 in pairs.jsonl" in page_text(box) for box in shown] == [True, False]
    assert "Blind test" in page_text(shown[1])
    with pytest.raises(CaiError, match="does not exist yet"):
        widgets.inspect_pairs(type(workspace)(workspace.root / "empty"))


def page_text(box: ipywidgets.Widget) -> str:
    return " ".join(text_of(one.value) for one in widgets_on(box) if isinstance(one, ipywidgets.HTML))

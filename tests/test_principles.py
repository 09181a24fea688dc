"""Which principle pays, and what an edit of the constitution does, on the same drafts."""

from __future__ import annotations

import json
from importlib import resources

import pytest
from small_run import small_settings

from cai_helpers.critique.principle_entry import Scored, entry_of
from cai_helpers.pages.principle_picture import save_principles_plot
from cai_helpers.schema import Prompt, Trace
from cai_helpers.settings import change_settings
from cai_helpers.stages.principles import OWN, SHIPPED, compare_constitutions, compare_principles
from cai_helpers.store import read_jsonl


def trace(draft: str, revision: str, outcome: str = "revised") -> Trace:
    prompt = Prompt(id="a", messages=[{"role": "user", "content": "How?"}], category="helpful", source="x")
    return Trace(
        id="a", prompt=prompt, draft=draft, draft_finish="stop", principle_ids=["P"], protocol="single/short",
        critic_outputs=[], critique="", revision=revision, outcome=outcome, reason="", tokens=1,
    )  # fmt: skip


REFUSAL = "I can't help you with that."


def test_a_principle_is_counted_over_all_prompts_and_not_only_over_its_revisions():
    rows = [
        Scored(trace("Sure, take it.", REFUSAL), 2.0),
        Scored(trace("Take it.", "Do take it now please."), -1.0),
        Scored(trace("Take it.", "Take it.", "kept"), None),
        Scored(trace("Take it.", "Take it.", "unparsed"), None),
    ]
    entry = entry_of("P", "Be good.", rows)
    assert (entry.prompts, entry.revised, entry.kept, entry.wins, entry.losses) == (4, 2, 1, 1, 1)
    assert entry.net.value == 0.0
    assert entry.win_rate.value == 0.5
    assert entry.refusals.value == 0.25
    assert entry.length.value == 3.0


def test_a_principle_that_nothing_came_of_has_no_win_rate_and_can_be_drawn(tmp_path):
    entry = entry_of("P", "Be good. " * 30, [Scored(trace("Take it.", "Take it.", "kept"), None)] * 3)
    assert entry.win_rate is None
    assert entry.length is None
    assert entry.figures()["revised wins"] == "–"
    assert save_principles_plot([entry], tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_each_principle_is_tried_alone_on_the_same_drafts_and_a_second_call_makes_nothing(workspace, tmp_path, capsys):
    own = tmp_path / "two.yaml"
    own.write_text(TWO)
    settings = small_settings(f"generate.constitution={own}")
    report = compare_principles(settings, workspace, 8)
    assert sorted(entry.name for entry in report.entries) == ["ONE", "TWO"]
    assert {entry.prompts for entry in report.entries} == {8}
    rows = list(read_jsonl(workspace.principles_dir / "principles" / "traces.jsonl"))
    assert len({row["trace"]["prompt"]["id"] for row in rows}) == 8
    drafts = {(row["trace"]["prompt"]["id"], row["trace"]["draft"]) for row in rows}
    assert len(drafts) == 8
    assert sorted(row["trace"]["principle_ids"] for row in rows) == [["ONE"]] * 8 + [["TWO"]] * 8
    assert workspace.picture("which_principle_pays").exists()
    assert [entry.net.value for entry in report.entries] == sorted((e.net.value for e in report.entries), reverse=True)
    assert compare_principles(settings, workspace, 8) == report
    assert len(list(read_jsonl(workspace.principles_dir / "principles" / "traces.jsonl"))) == 16


@pytest.mark.slow
def test_an_edited_constitution_stands_beside_the_shipped_one_on_the_same_drafts(workspace, tmp_path):
    settings = small_settings()
    alone = compare_constitutions(settings, workspace, 6)
    assert [entry.name for entry in alone.entries] == [SHIPPED]
    own = tmp_path / "two.yaml"
    own.write_text(TWO)
    both = compare_constitutions(change_settings(settings, [f"generate.constitution={own}"]), workspace, 6)
    assert [entry.name for entry in both.entries] == [SHIPPED, OWN]
    assert both.entries[0] == alone.entries[0]  # nothing of it was made again
    own.write_text(TWO.replace("always", "never"))
    edited = compare_constitutions(change_settings(settings, [f"generate.constitution={own}"]), workspace, 6)
    assert edited.entries[0] == alone.entries[0]
    assert len(list(read_jsonl(workspace.principles_dir / "constitutions" / "traces.jsonl"))) == 18


@pytest.mark.slow
def test_the_editor_keeps_a_sound_text_and_names_the_line_of_a_broken_one(workspace):
    from cai_helpers.notebook.constitution_editor import ConstitutionEditor, saved_settings

    workspace.save_settings(small_settings())
    editor = ConstitutionEditor(small_settings(), workspace)
    shipped = (resources.files("cai_helpers") / "assets" / "constitution.yaml").read_text()
    assert editor.text.value == shipped
    editor.text.value = TWO.replace("category: good", "category: bad", 1)
    editor.save()
    assert "unknown category" in editor.said.value
    assert json.loads(workspace.settings_file.read_text())["generate"]["constitution"] is None
    editor.text.value = TWO
    editor.save()
    assert "2 principles" in editor.said.value
    assert saved_settings(workspace).generate.constitution == str(workspace.own_constitution)
    editor.restore()
    assert saved_settings(workspace).generate.constitution is None


TWO = """categories:
  good: {weight: 1, title: Good}
principles:
  - {id: ONE, category: good, text: Be kind and refuse what hurts people., indicators: [], example: An example.}
  - {id: TWO, category: good, text: Be brief and always answer the question., indicators: [], example: An example.}
"""


def test_a_constitution_that_pairs_were_made_with_is_not_saved_over(workspace):
    from cai_helpers.notebook.constitution_editor import ConstitutionEditor

    workspace.save_settings(small_settings())
    editor = ConstitutionEditor(small_settings(), workspace)
    editor.save()
    before = workspace.own_constitution.read_bytes()
    workspace.begin("generate", {"seed": 0})
    editor.text.value = editor.text.value.replace("HP001", "HP901")
    editor.save()
    editor.restore()
    assert "Not saved: this run has pairs" in editor.said.value
    assert workspace.own_constitution.read_bytes() == before

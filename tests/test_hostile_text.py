"""Text that wants to run in the browser, planted in every field: on every page of the notebook it is text and no more."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import yaml
from html_reader import HtmlReader
from pairs_for_eyes import pair, write_pairs, write_traces

from cai_helpers.analysis.statistics import Example
from cai_helpers.curation.overrides import Override
from cai_helpers.inspection.rows import CriticWords, Row
from cai_helpers.inspection.worddiff import MOST_WORDS, word_diff
from cai_helpers.notebook import live, widgets
from cai_helpers.notebook.inspector import Inspector
from cai_helpers.notebook.markup import Html, table
from cai_helpers.notebook.pair_html import blind_html, critic_html, message_html, pair_html, title_html
from cai_helpers.readiness.check import Check
from cai_helpers.schema import PreferenceRow, ScoredPair, Target
from cai_helpers.store import write_jsonl
from cai_helpers.training.watch.alarms import Alarm
from cai_helpers.training.watch.history import Progress
from cai_helpers.training.watch.views import OF_PAIRS

FIELDS = ("prompt", "draft", "revision", "critique", "principle", "category", "source", "reason")
NEVER_SHOWN = {"source"}


def plant(field: str) -> str:
    """Breaks out of a text and out of an attribute, whichever quotes it has; `field` tells where it came from."""
    return f"""{field} & '"><img src=x onerror="hit('{field}')"><script>hit('{field}')</script>"""


def planted_pair(**fields) -> ScoredPair:
    defaults = {
        "prompt": plant("prompt"),
        "messages": [{"role": "user", "content": plant("earlier turn")}, {"role": "user", "content": plant("prompt")}],
        "base_response": f"{plant('draft')} first",
        "revised_response": f"{plant('revision')} second",
        "critic_notes": plant("critique"),
        "principle_ids": [plant("principle")],
        "category": plant("category"),
        "source": plant("source"),
        "reason": plant("reason"),
        "id": plant("id"),
    }
    return pair(1, 0.0, 1.0, **defaults | fields)


def unlike(side: str) -> str:
    return plant(side) + "".join(f" {side}{number}" for number in range(160))


BRANCHES = {
    "word diff": planted_pair(),
    "nothing in common": planted_pair(base_response=unlike("draft"), revised_response=unlike("revision")),
    "too long for a diff": planted_pair(
        base_response=unlike("draft") + " left" * (MOST_WORDS + 1),
        revised_response=unlike("revision") + " right" * (MOST_WORDS + 1),
    ),
    "no revision": planted_pair(outcome="unparsed", chosen=None, revised_response=plant("draft")),
    "from elsewhere": planted_pair(outcome="unknown", messages=[]),
}


def check_text_only(pages: Sequence[str], *shown: str) -> None:
    """No page has an element or an attribute of a plant; what was planted in `shown` can be read, every character."""
    readers = [HtmlReader(page) for page in pages]
    for page, reader in zip(pages, readers, strict=True):
        assert {"img", "script"} & set(reader.elements) == set()
        assert "<img" not in page
        assert "<script" not in page
    readable = " ".join("".join(reader.texts) + " ".join(reader.attribute_values) for reader in readers)
    assert [field for field in shown if plant(field) not in readable] == []


# --- a pair ---


@pytest.mark.parametrize("branch", BRANCHES)
def test_every_field_of_a_pair_stays_text_in_the_inspector_and_in_a_blind_round(branch):
    planted = BRANCHES[branch]
    decision = Override(key="key", id="id", decision="drop", note=plant("note"), time=plant("time"))
    page = pair_html(Row(planted, "key", plant("curation")), decision, {plant("principle"): plant("principle's text")})
    words = CriticWords(plant("protocol"), [plant("raw output")])
    critic = critic_html(planted, words)
    blind = [blind_html(planted, "draft"), blind_html(planted, "revision")]
    sides = ["draft"] if branch == "no revision" else ["draft", "revision"]
    check_text_only([page], "prompt", *sides, "category", "principle", "principle's text", "note", "time", "curation")
    check_text_only([critic], "critique", "protocol", "raw output")
    for blind_page in blind:
        check_text_only([blind_page], "prompt", *sides)


def test_two_sides_that_share_under_a_fifth_of_their_words_are_shown_whole_and_stay_text():
    planted = BRANCHES["nothing in common"]
    assert word_diff(planted.base_response, planted.revised_response).shared < 0.2
    page = pair_html(Row(planted, "key", None), None, {})
    reader = HtmlReader(page)
    assert {"del", "ins", "img", "script"} & set(reader.elements) == set()
    assert planted.base_response in reader.texts
    assert planted.revised_response in reader.texts


def test_an_edited_text_stays_text():
    edited = Override(key="key", id="id", decision="edit", edited=f"{plant('edited')} third", time="now")
    check_text_only([pair_html(Row(BRANCHES["word diff"], "key", None), edited, {})], "edited")


def test_a_reason_is_shown_where_there_is_no_revision_and_stays_text():
    check_text_only([pair_html(Row(BRANCHES["no revision"], "key", None), None, {})], "reason")


def test_names_of_files_and_messages_stay_text():
    check_text_only([title_html(plant("file"), 3)], "file")
    check_text_only([message_html(plant("message"))], "message")


def test_the_widgets_of_the_inspector_hold_no_element_of_a_plant(workspace):
    pairs = write_pairs(workspace, list(BRANCHES.values()))
    write_traces(workspace, pairs)
    inspector = Inspector(workspace)
    inspector.critic_toggle.value = True
    pages = []
    for _ in pairs:
        inspector.note.value = plant("note")
        inspector.decide("drop")
        pages += [inspector.page.value, inspector.critic.value, inspector.status.value, inspector.counter.value]
        inspector.next()
    inspector.jump.value = "<img>"
    pages.append(inspector.status.value)
    inspector.open_blind()
    inspector.blind.start()
    for _ in inspector.blind.drawn:
        pages += [inspector.blind.page.value, inspector.blind.status.value]
        inspector.blind.left()
    pages.append(inspector.blind.page.value)
    check_text_only(pages, *(set(FIELDS) - NEVER_SHOWN), "note")


# --- tables and pictures of the notebooks ---


@pytest.fixture
def shown(monkeypatch) -> list[str]:
    pages: list[str] = []
    monkeypatch.setattr(widgets, "display", lambda page: pages.append(page.data))
    return pages


def test_pairs_shown_side_by_side_stay_text(shown, workspace):
    write_pairs(workspace, list(BRANCHES.values()))
    widgets.show_pairs(workspace, count=9)
    check_text_only(shown, "prompt", "earlier turn", "draft", "revision", "principle", "reason")
    shown.clear()
    widgets.show_pairs(workspace, outcome=plant("outcome"))
    check_text_only(shown, "outcome")


def test_examples_of_the_analysis_stay_text(shown, workspace):
    planted = BRANCHES["word diff"]
    fields = ("prompt", "base_response", "revised_response", "category", "principle_ids", "critic_notes", "id")
    scores = {"base_score": 0.0, "revised_score": 1.0, "delta": 1.0}
    widgets.show_examples([Example(**planted.model_dump(include=set(fields)), **scores)], workspace)
    check_text_only(shown, "prompt", "draft", "revision", "category", "principle")


def test_training_rows_stay_text(shown, workspace):
    row = PreferenceRow(
        prompt=[{"role": "user", "content": plant("prompt")}],
        chosen=[{"role": "assistant", "content": plant("chosen")}],
        rejected=[{"role": "assistant", "content": plant("rejected")}],
        **{"id": plant("id"), "category": plant("category"), "delta": 1.0, "chosen_side": "revised"},
    )
    write_jsonl(workspace.train_rows, [row.model_dump()])
    widgets.show_rows(workspace)
    check_text_only(shown, "prompt", "chosen", "rejected")


def test_reports_tables_checks_and_targets_stay_text(shown):
    widgets.show(SimpleNamespace(title=lambda: plant("title"), lines=lambda: [(plant("line"), plant("figure"))]))
    widgets.show_table(plant("table"), [{plant("head"): plant("cell")}])
    widgets.show_checks([Check(plant("check"), False, plant("state"), plant("todo"))])
    target = {name: plant(name) for name in ("name", "aim", "found", "cause", "remedy")}
    widgets.show_targets([Target(**target, ok=False)])
    check_text_only(shown[:1], "title", "line", "figure")
    check_text_only(shown[1:2], "table", "head", "cell")
    check_text_only(shown[2:3], "check", "state", "todo")
    check_text_only(shown[3:], *target)


def test_settings_and_a_constitution_of_ones_own_stay_text(shown, smoke, tmp_path):
    own = tmp_path / "own.yaml"
    principle = {"id": plant("id"), "category": "care", "text": plant("text"), "weight": 1, "indicators": ["x"]}
    own.write_text(
        yaml.safe_dump(
            {"categories": {"care": {"weight": 1, "title": "Care"}}, "principles": [principle | {"example": "x"}]}
        )
    )
    generate = smoke.generate.model_copy(update={"constitution": str(own)})
    widgets.show_constitution(smoke.model_copy(update={"generate": generate}))
    check_text_only(shown, "id", "text")
    shown.clear()
    widgets.show_settings(smoke.model_copy(update={"preset": plant("preset")}))
    check_text_only(shown, "preset")


def test_the_live_panel_stays_text():
    alarm = Alarm(step=5, **{field: plant(field) for field in ("name", "threshold", "evidence", "advice")})
    page = live.render(Progress([], 5, 20, 30.0, [alarm], OF_PAIRS), plant("log"))
    check_text_only([page], "name", "threshold", "evidence", "advice", "log")


# --- the pieces that pages are made of ---


def test_text_is_escaped_once_and_html_is_not():
    bold = Html("<b>{}</b>").format("a < b")
    assert bold == "<b>a &lt; b</b>"
    assert Html("<p>{}{}</p>").format(bold, " & c") == "<p><b>a &lt; b</b> &amp; c</p>"
    assert Html("").join([bold, "<i>"]) == "<b>a &lt; b</b>&lt;i&gt;"
    assert Html("{:+.1f} {!r}").format(2, "'") == "+2.0 &#34;&#39;&#34;"


def test_half_a_surrogate_pair_in_a_table_can_be_sent_to_the_browser():
    assert table([("half \ud83d", "whole \ud83d\ude00")]).encode().decode().count("�") == 1

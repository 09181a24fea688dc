"""What matters first, the rest behind a line that opens it."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from cai_helpers.notebook import widgets
from cai_helpers.notebook.folded import report_html, settings_html
from cai_helpers.notebook.markup import table
from cai_helpers.readiness.check import Check
from cai_helpers.schema import StageReport, Target


class Long(StageReport):
    FIRST = ("verdict",)

    def title(self) -> str:
        return "A report"

    def lines(self) -> list[tuple[str, str]]:
        return [("verdict", "good"), *((f"figure {number}", str(number)) for number in range(20))]


def texts(page: str) -> list[str]:
    return [text for text in ET.fromstring(f"<div>{page}</div>").itertext() if text.strip()]


def outside_details(page: str) -> str:
    root = ET.fromstring(f"<div>{page}</div>")
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag == "details"]:
            parent.remove(child)
    return " ".join(root.itertext())


def test_a_long_report_shows_what_matters_and_folds_the_rest():
    page = report_html(Long())
    assert outside_details(page) == "A report verdict good"
    assert "all figures (20 more lines)" in page
    assert texts(page).count("good") == 1  # nothing stands there twice


def test_a_short_report_is_shown_whole():
    class Short(Long):
        def lines(self) -> list[tuple[str, str]]:
            return super().lines()[:5]

    assert "details" not in report_html(Short())


def test_seventy_settings_are_folded_and_what_was_changed_is_said(smoke):
    changed = smoke.model_copy(update={"train": smoke.train.model_copy(update={"beta": 0.2})})
    first = outside_details(settings_html(changed))
    assert "embedded:chat" in first
    assert "changed from the preset train.beta = 0.2" in first
    assert "warmup" not in first
    assert "warmup" in settings_html(changed)
    assert "changed from the preset" not in settings_html(smoke.model_copy(update={"threads": None}))


def test_of_the_checks_only_those_that_ask_for_something_are_unfolded(monkeypatch):
    shown: list[str] = []
    monkeypatch.setattr(widgets, "display", lambda page: shown.append(page.data))
    widgets.show_checks(
        [Check("GPU", False, "none", "Take one."), *(Check(f"n{n}", True, "fine", "") for n in range(9))]
    )
    first = outside_details(shown[0])
    assert "1 of 10 checks ask for something" in first
    assert "Take one." in first
    assert "n3" not in first


@pytest.mark.parametrize("figure", ["4.7 % (3–8 %)", "+0.42 (+0.31 to +0.53)", "14.5 GiB", "+12 points (+4 to +20)"])
def test_no_line_of_a_table_ends_inside_a_value(figure):
    page = table([("share", f"of all the pairs that were made in this run: {figure} of 268")])
    assert f'<span style="white-space:nowrap">{figure}</span>' in page


def test_a_name_is_not_broken_and_a_sentence_is():
    page = table([("meta-commentary", "a sentence that is far too long for one line of a phone"), ("a", "line\nbreak")])
    cells = [cell.get("style") for cell in ET.fromstring(page).iter("td")]
    assert ["nowrap" in style for style in cells] == [True, False, True, False]


def test_a_target_that_falls_short_names_no_command(monkeypatch):
    shown: list[str] = []
    monkeypatch.setattr(widgets, "display", lambda page: shown.append(page.data))
    remedy = "Try another protocol: `cai bakeoff` compares them."
    widgets.show_targets([Target(name="n", aim="a", found="f", ok=False, cause="c", remedy=remedy)])
    assert "`cai" not in shown[0]
    assert "the bake-off of notebook 02" in shown[0]

"""Notebook 05 as a person meets it: the verdict, the blind check and the chat, in a real kernel and a real browser."""

from __future__ import annotations

import os
from pathlib import Path

import browser_page
import pytest
from answers_for_eyes import answered, write_evaluation

from cai_helpers.curation.overrides import read_overrides
from cai_helpers.store import read_jsonl

pytestmark = pytest.mark.browser

# A kernel of its own has no model here: both stages give out these answers in order.
SCRIPTED = """
import sys
sys.path.insert(0, {tests!r})
from IPython.display import display
from conftest import ScriptedGenerator
from test_talk import ScriptedPolicies
from cai_helpers.inspection.talk import Talk
from cai_helpers.notebook.chat import Chat
from cai_helpers.settings import load_settings
from cai_helpers.workspace import Workspace

policies = ScriptedPolicies(ScriptedGenerator, ["Take the red bike."] * 9, ["Take the <b>blue</b> bike."] * 9)
display(Chat(Talk(load_settings("smoke"), Workspace({root!r}), policies=policies)).box)
"""


@pytest.fixture(scope="module")
def site():
    if missing := browser_page.missing():
        if os.environ.get("CAI_BROWSER_TESTS") == "required":
            pytest.fail(f"The browser tests cannot run: {missing}", pytrace=False)
        pytest.skip(f"NO BROWSER TEST RUNS HERE. Missing: {missing}")
    with browser_page.site() as site:
        yield site


@pytest.fixture
def page(site):
    with browser_page.browser_page() as page:
        yield page


def press(box, label: str) -> None:
    from playwright.sync_api import expect

    button = box.get_by_role("button", name=label, exact=True)
    expect(button).to_be_enabled(timeout=60_000)
    button.click()


def shows(box, text: str) -> None:
    from playwright.sync_api import expect

    expect(box).to_contain_text(text, timeout=60_000)  # models load first


def test_a_person_talks_to_both_and_chooses(site, page, workspace):
    workspace.adapter.mkdir(parents=True)
    tests = str(Path(__file__).resolve().parent.parent)
    box = site.show(page, SCRIPTED.format(tests=tests, root=str(workspace.root)))
    box.locator("textarea").fill("May I take the bike?")
    press(box, "ask both")
    shows(box, "Take the <b>blue</b> bike.")  # as text
    assert box.locator("ins").count() > 0
    press(box, "this one is better ▶")
    shows(box, "Stage 3 is better here")
    (standing,) = read_overrides(workspace.overrides).values()
    assert standing.pair.base_response == "Take the red bike."
    press(box, "take back")
    shows(box, "Taken back.")
    assert read_overrides(workspace.overrides) == {}
    press(box, "shuffle sides")
    box.locator("textarea").fill("And the lamp?")
    press(box, "ask both")
    shows(box, "And the lamp?")
    assert "Stage" not in box.locator(".cai-sides").inner_text()


def test_a_person_compares_answers_blind(site, page, workspace):
    write_evaluation(workspace, [answered(number, 1.0) for number in range(30)])
    box = site.show(page, browser_page.inspector_cell(workspace.root, "blind_check(workspace, prompts=20)"))
    press(box, "start")
    for number in range(1, 21):
        shows(box, f"{number} of 20")
        left = box.locator(".cai-side").first.inner_text()
        press(box, "◀ left is better" if "blue" in left else "right is better ▶")
    shows(box, "Stage 3 preferred in 100 % (84–100 %) of 20 held-out prompts")
    assert len(list(read_jsonl(workspace.blind_answers))) == 20
    press(box, "another round")
    press(box, "start")
    shows(box, "1 of 10")


@pytest.mark.parametrize("width", [400, 1180])
def test_the_verdict_fits_a_phone_and_a_desk(page, workspace, smoke, width):
    from cai_helpers.pages.run_page import write_run_report

    rows = [answered(number, float(number % 5 - 2)) for number in range(30)]
    write_evaluation(workspace, [*rows, *(answered(n, 1.0, prompt_set="unsafe") for n in range(40, 60))])
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(write_run_report(smoke, workspace).resolve().as_uri())
    assert (
        page.evaluate("document.documentElement.scrollWidth") <= width
    )  # nothing sticks out; the table scrolls by itself
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert contrast(page, ".cv-headline") > 7
        assert contrast(page, ".cv-figure") > 7


def contrast(page, selector: str) -> float:
    """WCAG's contrast of the text against the page behind it."""
    ink, paper = page.evaluate(
        "(selector) => [getComputedStyle(document.querySelector(selector)).color, "
        "getComputedStyle(document.body).backgroundColor]",
        selector,
    )
    light, dark = sorted((luminance(ink), luminance(paper)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    channels = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

"""The inspector as a person meets it: a real kernel, a real browser, the files on disk.

Without Chromium and the extra "browser" these tests skip; with CAI_BROWSER_TESTS=required they fail instead.
"""

from __future__ import annotations

import os

import browser_page
import pytest
from pairs_for_eyes import HOSTILE, planted, write_pairs, write_traces

from cai_helpers.curation.overrides import read_overrides
from cai_helpers.store import read_jsonl
from cai_helpers.workspace import Workspace

pytestmark = pytest.mark.browser


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


class Screen:
    """What a person sees and presses."""

    def __init__(self, site, page, workspace: Workspace) -> None:
        from playwright.sync_api import expect

        self.page = page
        self._expect = expect
        self.box = site.show(page, browser_page.inspector_cell(workspace.root))

    def press(self, label: str) -> None:
        button = self.box.get_by_role("button", name=label, exact=True)
        self._expect(button).to_be_enabled()
        button.click()

    def choose(self, label: str) -> None:
        """The option of whichever drop-down has it."""
        self.box.locator("select", has=self.page.locator("option", has_text=label)).select_option(label=label)

    def write(self, hint: str, text: str) -> None:
        field = self.box.get_by_placeholder(hint)
        field.fill(text)
        field.press("Enter")

    def shows(self, text: str) -> None:
        """Wait until it does."""
        self._expect(self.box).to_contain_text(text)

    def rewrite(self, found: str, text: str) -> None:
        """Put `text` into the editor, once it holds what is to be edited."""
        editor = self.box.locator("textarea")
        self._expect(editor).to_have_value(found)
        editor.fill(text)


@pytest.fixture
def screen(site, page, workspace):
    pairs = write_pairs(workspace, planted())
    write_traces(workspace, pairs)
    return Screen(site, page, workspace)


def test_a_person_looks_filters_overrules_edits_and_takes_back(screen, workspace):
    screen.shows("1 of 8")
    screen.press("next ▶")
    screen.shows("2 of 8")
    screen.shows("Question 2")
    screen.press("critic's words")
    screen.shows("RAW Critique 2.")

    screen.choose("draft chosen (4)")
    screen.choose("smallest delta first")
    screen.shows("1 of 4 (of 8)")
    screen.shows("Draft number 6 says take the red pin.")
    screen.write("note (kept with your decision)", "too blue")
    screen.press("revision is better")
    screen.shows("✓ your choice")
    screen.shows("revision is better · too blue")

    screen.press("next ▶")
    screen.press("edit revision")
    screen.rewrite("Draft number 4 says take the blue pin.", "Draft number 4 says take the green pin.")
    screen.press("save my text")
    screen.shows("Your text")
    screen.press("next ▶")
    screen.press("drop")
    screen.shows("3 decisions stand")
    screen.press("undo")
    screen.shows("2 decisions stand")

    standing = {one.id: (one.decision, one.edited, one.note) for one in read_overrides(workspace.overrides).values()}
    assert standing == {
        "id6": ("revision", None, "too blue"),
        "id4": ("edit", "Draft number 4 says take the green pin.", ""),
    }
    assert [line["decision"] for line in read_jsonl(workspace.overrides)] == ["revision", "edit", "drop", "undo"]


def test_text_that_wants_to_run_stays_text(screen, workspace):
    screen.write("go to no.", "8")
    screen.shows("8 of 8")
    screen.press("critic's words")
    screen.shows("RAW <img src=x onerror=")
    screen.write("note (kept with your decision)", '<img src=x onerror="window.hit=1">')
    screen.press("edit revision")
    screen.rewrite(f"{HOSTILE} and more", '<img src=x onerror="window.hit=1"> edited')
    screen.press("save my text")
    screen.shows("Your text")
    screen.press("blind test")
    screen.press("start")
    for _ in range(7):
        assert_inert(screen)
        screen.press("skip")
    screen.shows("nothing to report")
    screen.press("back to the pairs")
    screen.write("search the texts", "onerror")
    screen.shows("1 of 1 (of 8)")
    assert_inert(screen)
    # the proof can fail: the same text as HTML does run
    screen.page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hit=1\">')")
    screen.page.wait_for_function("window.hit === 1")


def assert_inert(screen) -> None:
    assert screen.box.locator("img, script").count() == 0
    assert screen.page.evaluate("window.hit") is None


def test_a_blind_round_hides_who_is_who_and_tells_the_agreement(screen, workspace):
    screen.press("next ▶")
    screen.press("blind test")
    screen.box.get_by_role("spinbutton").fill("4")
    screen.box.get_by_role("spinbutton").press("Enter")
    screen.press("start")
    for number in range(1, 5):
        screen.shows(f"{number} of 4")
        seen = screen.box.inner_text().replace("Draft number", "")
        assert [hint for hint in ("reward", "Draft", "Revision", "delta", "Critique") if hint in seen] == []
        left = screen.box.locator(".cai-side").first.inner_text()
        screen.press("◀ left is better" if "blue" in left else "right is better ▶")
    screen.shows("4 rows are a first check")
    assert "agree with the reward model on" in screen.box.inner_text()
    assert len(list(read_jsonl(workspace.blind))) == 4
    assert not workspace.overrides.exists()
    screen.press("keep them as decisions")
    screen.shows("4 judgements are decisions now")
    assert len(read_overrides(workspace.overrides)) == 4
    screen.press("back to the pairs")
    screen.choose("decided")
    screen.shows("1 of 4 (of 8)")

"""What notebooks show, on a phone and in the dark themes of Colab, JupyterLab and VS Code."""

from __future__ import annotations

import os

import browser_page
import pytest
from answers_for_eyes import answered, write_evaluation
from pairs_for_eyes import pair
from test_evaluation_in_browser import contrast
from test_live import made, progress

from cai_helpers.inspection.rows import Row
from cai_helpers.notebook import live
from cai_helpers.notebook.frame import frame_html
from cai_helpers.notebook.making_html import making_html
from cai_helpers.notebook.markup import Html, table
from cai_helpers.notebook.pair_html import pair_html, style_html

pytestmark = pytest.mark.browser

# How each marks its dark theme, and the colours that outputs inherit.
THEMES = {
    "Colab": '<html theme="dark"><body style="background:rgb(56,56,56);color:rgb(224,224,224)">{}</body></html>',
    "JupyterLab": '<html><body data-jp-theme-light="false" style="background:rgb(17,17,17);color:rgb(255,255,255)">{}</body></html>',
    "VS Code": '<html><body class="vscode-dark" style="background:rgb(31,31,31);color:rgb(204,204,204)">{}</body></html>',
}
LIGHT = (
    '<html><body data-jp-theme-light="true" style="background:rgb(255,255,255);color:rgb(33,33,33)">{}</body></html>'
)
ROWS = [{"step": step, "loss": 0.69 - step / 100, "accuracy": 0.5, "margin": 0.1, "lr": 1e-5, "tokens_per_s": 1.0,
         "memory_gib": None} for step in (1, 5, 10)]  # fmt: skip


@pytest.fixture
def page():
    if missing := browser_page.missing():
        if os.environ.get("CAI_BROWSER_TESTS") == "required":
            pytest.fail(f"The browser tests cannot run: {missing}", pytrace=False)
        pytest.skip(f"NO BROWSER TEST RUNS HERE. Missing: {missing}")
    with browser_page.browser_page(400) as page:
        yield page


def shown() -> Html:
    """A piece of each kind."""
    failed = pair(1, outcome="unparsed", critic_output="Nonsense.", revised_score=None)
    figures = [
        ("share of the pairs", "of all that were made: 61 % (52–69 %)"),
        ("mean", "+0.42 (+0.31 to +0.53) of 268"),
    ]
    return Html("<div>{}{}{}{}{}</div>").format(
        style_html(),
        making_html(made(128), {}, 41.0),
        live.render(progress(10, ROWS), "logs/run.log"),
        pair_html(Row(failed, "key", None), None, {}),
        table(figures),
    )


@pytest.mark.parametrize("theme", [*THEMES, "light"])
def test_text_is_legible_in_every_theme(page, theme):
    page.set_content((THEMES | {"light": LIGHT})[theme].format(shown()))
    for selector in (".cai-count span", ".cai-text", ".cai-badge", "svg", "td"):
        assert contrast(page, selector) > 7
    assert page.evaluate("[...document.querySelectorAll('svg, .cai-side, table')].filter("
                         "e => getComputedStyle(e).backgroundColor === 'rgb(255, 255, 255)').length") == 0  # fmt: skip


@pytest.mark.parametrize("theme", [*THEMES, "light"])
def test_a_page_in_a_frame_is_as_dark_as_the_notebook_around_it(page, theme, tmp_path):
    file = tmp_path / "page.html"
    file.write_text("<style>@media (prefers-color-scheme: dark) { body { background: black; } }</style>text")
    page.emulate_media(color_scheme="dark")  # the system's scheme is another thing
    page.set_content((THEMES | {"light": LIGHT})[theme].format(frame_html(file, 200)))
    turned = page.evaluate("getComputedStyle(document.querySelector('.cai-page')).filter")
    assert turned.startswith("invert") == (theme in THEMES)
    assert "prefers-color-scheme" not in page.locator(".cai-page").get_attribute("srcdoc")


def test_on_a_phone_nothing_sticks_out_and_no_line_ends_inside_a_value(page):
    page.set_content(LIGHT.format(shown()))
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    values = page.evaluate(_VALUES)
    assert len(values) >= 2
    assert [text for text, lines in values if lines > 1] == []


def test_in_a_report_on_a_phone_no_line_ends_inside_a_value(page, workspace, smoke):
    from cai_helpers.pages.run_page import write_run_report

    write_evaluation(workspace, [answered(number, float(number % 5 - 2)) for number in range(30)])
    page.goto(write_run_report(smoke, workspace).resolve().as_uri())
    values = page.evaluate(_VALUES)
    assert len(values) > 20
    assert [text for text, lines in values if lines > 1] == []


# every "61 % (52–69 %)" and "+0.42 (+0.31 to +0.53)" of the page, with the lines it takes
_VALUES = """() => {
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const value = /[+-]?[0-9][0-9.,]*(?: %)? [(][+-]?[0-9][^()]{0,24}[)]/g;
  for (let node; node = walker.nextNode();)
    for (const match of node.data.matchAll(value)) {
      const range = document.createRange();
      range.setStart(node, match.index); range.setEnd(node, match.index + match[0].length);
      const lines = new Set([...range.getClientRects()].map(box => Math.round(box.top)));
      if (lines.size) found.push([match[0], lines.size]);
    }
  return found;
}"""

"""Bars in a notebook: whoever begins one, a cell has one place for all, and one line is left."""

from __future__ import annotations

import subprocess
import sys

import pytest
import tqdm.auto
import tqdm.std

from cai_helpers import screen
from cai_helpers.notebook import bars

# A kernel of its own: libraries take tqdm's class when they are imported, and are imported once.
_KERNEL = """
from cai_helpers.notebook import bars

shown = []


class Handle:
    def update(self, page):
        shown.append(page.data)


def display(page, display_id):
    shown.append(page.data)
    places.append(Handle())
    return places[-1]


places = []
bars.display = display
bars._line_of_cell = lambda line=bars.Line(1): line
bars.take_over()
"""


def run(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", _KERNEL + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "it/s" not in done.stderr
    return done.stdout.splitlines()


class Screen:
    """What a cell shows: how many places, and what the last drawing of each was."""

    def __init__(self) -> None:
        self.places: list[str] = []
        self.drawn: list[str] = []

    def __call__(self, page, display_id):
        self.places.append(page.data)
        self.drawn.append(page.data)
        place = len(self.places) - 1

        class Handle:
            def update(_, page):
                self.places[place] = page.data
                self.drawn.append(page.data)

        return Handle()


@pytest.fixture
def cell(monkeypatch):
    shown = Screen()
    line = bars.Line(1)
    monkeypatch.setattr(bars, "display", shown)
    monkeypatch.setattr(bars, "_line_of_cell", lambda: line)
    monkeypatch.setattr(tqdm.auto, "tqdm", tqdm.auto.tqdm)
    yield shown
    screen.show_on(screen.TERMINAL)


def test_the_bars_of_libraries_are_seen_while_they_work_and_leave_nothing_behind():
    places, seen, left, ours = run(
        "import sys\n"
        "import datasets.utils.tqdm, huggingface_hub.utils.tqdm\n"
        "from cai_helpers.models.language import load_stage2\n"
        "from cai_helpers.settings import load_settings\n"
        "load_stage2(load_settings('smoke').models)\n"
        "libraries = [sys.modules[name].tqdm for name in ('datasets.utils.tqdm', 'huggingface_hub.utils.tqdm')]\n"
        "print(len(places), any('Loading weights' in page for page in shown), repr(str(shown[-1])), sep='\\n')\n"
        "print(all(issubclass(library, bars.LineBar) for library in libraries))\n"
    )
    assert (places, seen, left, ours) == ("1", "True", "''", "True")


def test_nine_bars_in_a_row_are_one_place_and_one_line(cell):
    bars.take_over()
    for name in ("draft", "single/short", "single/full", "two_step/short", "two_step/full", "score"):
        with screen.bar(3, name, "pair") as bar:
            bar.update(3)
    for _ in tqdm.auto.tqdm(range(2), desc="Loading weights"):
        pass
    assert len(cell.places) == 1
    (left,) = cell.places
    assert (
        "✓ draft 3 pairs, single/short 3 pairs, single/full 3 pairs, two_step/short 3 pairs and 2 more in 0 s" in left
    )
    assert any("Loading weights" in page for page in cell.drawn)


def test_a_bar_tells_how_far_it_is_and_how_long_it_will_take(cell, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(tqdm.std, "time", lambda: now[0])
    bars.take_over()
    bar = screen.bar(100, "score", "text")
    bar._time = lambda: now[0]
    now[0] += 10
    bar.update(25)
    assert "25 of 100 texts · 2.5 texts a second · 30 s left" in cell.places[0]
    bar.close()


def test_a_hidden_bar_counts_and_draws_nothing(cell):
    bars.take_over()
    with screen.bar(5, "generate", "pair", hidden=True) as bar:
        bar.update(3)
        assert bar.n == 3
    assert cell.places == []


def test_in_a_terminal_a_hidden_bar_counts_too(capsys):
    with screen.bar(5, "generate", "pair", hidden=True) as bar:
        bar.update(3)
        assert bar.n == 3
    assert capsys.readouterr().err == ""


def test_what_a_stage_says_is_printed_in_the_words_of_a_notebook(cell, capsys):
    bars.take_over()
    screen.write("generate: goes on with single/short, as begun; --fresh starts over with two_step/full")
    assert capsys.readouterr().out == (
        "generate: goes on with single/short, as begun; fresh=True starts over with two_step/full\n"
    )


def test_checks_that_hold_are_counted_and_what_asks_for_something_is_printed(cell, capsys):
    bars.take_over()
    for line in ("train: ok    GPU: T4", "train: check: pad token: never seen", "train: WARNING: gate: few pairs"):
        screen.write(line)
    assert capsys.readouterr().out == "train: WARNING: gate: few pairs\n"
    assert len(cell.places) == 1
    assert "✓ 2 checks hold" in cell.places[0]

"""Bars in a notebook: all of a cell in one place that is drawn again and empties itself, whoever began them."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Mapping
from typing import Any

import tqdm.auto
from IPython import get_ipython
from IPython.display import HTML, display
from tqdm.asyncio import tqdm_asyncio

from cai_helpers import screen
from cai_helpers.notebook.markup import Html
from cai_helpers.notebook.words import in_notebook_words
from cai_helpers.terminal import visible

_NAMED = 4  # bars that the line of a finished cell names
_HOLDS = re.compile(r"[a-z]+: (?:ok {4}|check: )")


def take_over() -> None:
    """Draw every bar of this kernel in its cell's one line, those of the libraries that are imported from now on too.

    tqdm's own in notebooks are widgets, of which each stays where it ended: eight times "Loading weights" above a result.
    """
    tqdm.auto.tqdm = LineBar
    screen.show_on(screen.Screen(_OurBar, _write))


def _write(line: str) -> None:
    """Print it, unless it is a check that holds: logs/run.log has those, a cell tells how many there were."""
    if _HOLDS.match(line):
        _line_of_cell().checked()
    else:
        print(in_notebook_words(visible(line)))


class Line:
    """What one cell shows of its bars: those under way, and in the end what they came to, in one line."""

    def __init__(self, cell: int | None) -> None:
        self.cell = cell
        self._under_way: list[LineBar] = []
        self._done: list[str] = []
        self._checks = 0
        self._began = time.monotonic()
        self._handle: Any = None

    def add(self, bar: LineBar) -> None:
        self._under_way.append(bar)
        self.draw()

    def remove(self, bar: LineBar, done: str) -> None:
        if bar not in self._under_way:
            return
        self._under_way.remove(bar)
        if done:
            self._done.append(done)
        self.draw()

    def checked(self) -> None:
        self._checks += 1
        self.draw()

    def draw(self) -> None:
        page = HTML(self.render())
        if self._handle is None:
            self._handle = display(page, display_id=True)
        else:
            self._handle.update(page)

    def render(self) -> Html:
        if self._under_way:
            return Html("<div>{}</div>").format(Html("").join(bar.render() for bar in self._under_way))
        done = [
            *(["1 check holds" if self._checks == 1 else f"{self._checks} checks hold"] if self._checks else []),
            *self._done,
        ]
        if not done:
            return Html("")
        more = len(done) - _NAMED
        told = ", ".join(done[:_NAMED]) + (f" and {more} more" if more > 0 else "")
        seconds = f" in {screen.duration(time.monotonic() - self._began)}" if self._done else ""
        return Html('<div style="font-size:13px;opacity:.75">✓ {}{}</div>').format(told, seconds)


_line = [Line(None)]


def _line_of_cell() -> Line:
    shell = get_ipython()
    cell = None if shell is None else shell.execution_count
    if cell is None or _line[0].cell != cell:
        _line[0] = Line(cell)
    return _line[0]


class LineBar(tqdm_asyncio):
    """A bar that is a row of its cell's line."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options = {"mininterval": 0.5, **options, "gui": True, "file": io.StringIO()}  # nothing of it is printed
        self._place: Line | None = None
        super().__init__(*args, **options)
        if not self.disable and not self.delay:
            self._place = _line_of_cell()
            self._place.add(self)

    def display(self, *args: Any, **options: Any) -> None:
        if self._place is not None:
            self._place.draw()

    def clear(self, *args: Any, **options: Any) -> None:
        """Nothing is in the way of what is printed."""

    def close(self) -> None:
        if self.disable:
            return
        self.disable = True
        type(self)._decr_instances(self)  # type: ignore[attr-defined]
        if self._place is not None:
            self._place.remove(self, self.done())

    def done(self) -> str:
        """What stays to be said of it."""
        return ""

    def render(self) -> Html:
        facts = self.format_dict
        share = self.n / self.total if self.total else None
        track = Html(
            '<span style="flex:0 1 180px;height:6px;border-radius:3px;background:rgba(127,127,127,.28)">'
            '<span style="display:block;height:6px;border-radius:3px;background:rgb(0,125,215);width:{:.0f}%">'
            "</span></span>"
        ).format(100 * min(share or 0, 1))
        return Html(
            '<div style="display:flex;flex-wrap:wrap;gap:2px 12px;align-items:center;font-size:13px;line-height:20px">'
            "<span>{}</span>{}<span>{}</span></div>"
        ).format(self.desc.rstrip(": ") if self.desc else "", track if share is not None else Html(""), _facts(facts))


class _OurBar(LineBar):
    """One of a stage: it is named when the cell has ended."""

    def done(self) -> str:
        return f"{self.desc.rstrip(': ')} {self.n:,} {self.unit}{'' if self.n == 1 else 's'}" if self.n else ""


def _facts(facts: Mapping[str, Any]) -> str:
    """ "128 of 420 pairs · 3.1 a second · 94 s left"."""
    count, total, unit = facts["n"], facts["total"], facts["unit"].strip()
    size = tqdm.auto.tqdm.format_sizeof if facts["unit_scale"] else lambda value: f"{value:,}"
    named = {"it": "", "B": "B"}.get(unit, f" {unit}s")
    said = [f"{size(count)}{'' if total is None else f' of {size(total)}'}{named}"]
    rate = facts["rate"] or (count - facts["initial"]) / facts["elapsed"] if facts["elapsed"] else None
    if rate:
        said.append(f"{size(round(rate, 1))}{'' if unit == 'it' else named} a second")
        if total and total > count:
            said.append(f"{screen.duration((total - count) / rate)} left")
    return " · ".join([*said, *([facts["postfix"]] if facts["postfix"] else [])])

"""Which principle pays: won less lost, refusals and length under each one alone, beside its words."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cai_helpers.critique.principle_entry import PrincipleEntry
from cai_helpers.measures.intervals import Interval
from cai_helpers.pages import canvas
from cai_helpers.pages.canvas import BLUE, ORANGE, RED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def save_principles_plot(entries: Sequence[PrincipleEntry], path: Path) -> Path:
    return canvas.save(principles_figure(entries), path)


def principles_figure(entries: Sequence[PrincipleEntry]) -> Figure:
    """A row a principle, its words on the left; each figure with its 95 % interval."""
    figure, (net, refusals, length) = canvas.canvas(
        columns=3, width=13, height=2 + 0.5 * len(entries), width_ratios=(2, 2, 2), sharey=True
    )
    canvas.whiskers(net, range(len(entries)), [entry.net for entry in entries], BLUE, "D")
    canvas.whiskers(refusals, range(len(entries)), [entry.refusals for entry in entries], RED)
    _words(length, [entry.length for entry in entries])
    for axes in (net, refusals, length):
        canvas.level(axes, x=0, dashed=True)
    labels = [textwrap.fill(f"{entry.name}  {entry.words}", 60, max_lines=2) for entry in entries]
    net.set_yticks(range(len(entries)), labels)
    net.set_ylim(len(entries) - 0.5, -0.6)
    canvas.finish(net, "Won less lost", f"of all {entries[0].prompts} prompts, points", grid="x")
    canvas.finish(refusals, "Refusals", "points, revision less draft", grid="x")
    canvas.finish(length, "Length", "words, revision less draft", grid="x")
    return figure


def _words(axes: Axes, intervals: Sequence[Interval | None]) -> None:
    known = [(place, interval) for place, interval in enumerate(intervals) if interval is not None]
    axes.errorbar(
        [interval.value for _, interval in known],
        [place for place, _ in known],
        xerr=[
            [interval.value - interval.low for _, interval in known],
            [interval.high - interval.value for _, interval in known],
        ],
        fmt="o",
        color=ORANGE,
        markersize=6,
        elinewidth=2,
        capsize=3,
    )

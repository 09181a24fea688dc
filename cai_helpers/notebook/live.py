"""Training as it happens, in a notebook: figures, curves and alarms in one place that is drawn again, not printed again."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from IPython.display import HTML, display

from cai_helpers.notebook.markup import Html, table
from cai_helpers.pages.canvas import BLUE, GREY, INK, ORANGE, RED
from cai_helpers.pages.training_picture import LINE_COLOUR
from cai_helpers.training.watch.alarms import Row
from cai_helpers.training.watch.history import Progress, Watcher, duration
from cai_helpers.training.watch.views import Panel, View
from cai_helpers.workspace import Workspace

_EVERY = 2.0  # seconds between two drawings; the last one is always drawn
_WIDTH, _HEIGHT = 250, 120  # pixels of one curve
_CELL = "text-align:left;padding:2px 14px 2px 0"


_COLOUR_NAME = {BLUE: "blue", ORANGE: "orange", RED: "red"}


def training(workspace: Workspace) -> Watcher:
    """What `train_policy(settings, workspace, watch=…)` shows its progress with. It shows nothing before the first row.

    One display that is updated, and no widget: it works in every front end, and stays in the saved notebook. Curves are
    drawn as SVG, in a millisecond; matplotlib would take as long as a training step.
    """
    shown: dict[str, Any] = {"handle": None, "at": -math.inf}

    def watch(progress: Progress) -> None:
        now = time.monotonic()
        if now - shown["at"] < _EVERY and progress.step < progress.steps:
            return
        shown["at"] = now
        page = HTML(render(progress, str(workspace.run_log)))
        if shown["handle"] is None:
            shown["handle"] = display(page, display_id=True)
        else:
            shown["handle"].update(page)

    return watch


def render(progress: Progress, log: str) -> Html:
    """The page of one moment."""
    training_rows = [row for row in progress.rows if "loss" in row]
    evaluations = [row for row in progress.rows if "eval_loss" in row]
    head = Html("<b>step {} of {}</b> · {} left · every line is in {}").format(
        progress.step, progress.steps, duration(progress.seconds_left), log
    )
    alarm_line = Html('<p style="border-left:4px solid {};padding-left:8px;margin:4px 0">{}</p>')
    return Html("<div>{head}{alarms}{figures}<div>{curves}</div></div>").format(
        head=head,
        alarms=Html("").join(alarm_line.format(RED, alarm.line()) for alarm in progress.alarms),
        figures=_figures(progress.view, training_rows, evaluations),
        curves=Html("").join(_svg(panel, progress.rows) for panel in progress.view.panels),
    )


def _figures(view: View, training_rows: Sequence[Row], evaluations: Sequence[Row]) -> Html:
    if not training_rows:
        return Html("")
    last = training_rows[-1]
    latest = last | (evaluations[-1] if evaluations else {})
    shown = {
        figure.name: format(latest[figure.key], figure.form)
        for figure in view.figures
        if latest.get(figure.key) is not None
    }
    shown |= {"learning rate": f"{last['lr']:.1e}", "tokens/s": f"{last['tokens_per_s']:.0f}"}
    if last["memory_gib"] is not None:
        shown["GPU memory"] = f"{last['memory_gib']:.1f} GiB"
    return table([list(shown.values())], heads=list(shown), style=_CELL)


def _svg(panel: Panel, rows: Sequence[Row]) -> Html:
    points = {key: panel.points(key, rows) for key in panel.lines}
    colours = {key: LINE_COLOUR[label] for key, label in panel.lines.items()}
    level = panel.level_in(rows)
    everything = [point for line in points.values() for point in line]
    if not everything:
        return Html("")
    values = [value for _, value in everything] + ([] if level is None else [level])
    left, right = min(step for step, _ in everything), max(step for step, _ in everything)
    low, high = min(values), max(values)

    def place(step: float, value: float) -> str:
        x = 4 + (step - left) / max(right - left, 1) * (_WIDTH - 8)
        y = 20 + (high - value) / max(high - low, 1e-9) * (_HEIGHT - 36)
        return f"{x:.1f},{y:.1f}"

    parts = [_text(12, 11, _heading(panel))]
    if level is not None:
        places = f"{place(left, level)} {place(right, level)}"
        parts.append(Html('<polyline points="{}" stroke="{}" stroke-dasharray="4" fill="none"/>').format(places, GREY))
    parts += [_line([place(*point) for point in line], colours[key]) for key, line in points.items() if line]
    parts.append(_text(_HEIGHT - 3, 10, f"{low:.3g} to {high:.3g}"))
    return Html('<svg width="{}" height="{}" style="background:white;margin-right:10px">{}</svg>').format(
        _WIDTH, _HEIGHT, Html("").join(parts)
    )


def _heading(panel: Panel) -> str:
    """With the colours of its lines, where there are several."""
    if len(panel.lines) == 1:
        return panel.title
    named = (f"{label} {_COLOUR_NAME[LINE_COLOUR[label]]}" for label in panel.lines.values())
    return f"{panel.title}: {', '.join(named)}"


def _line(places: Sequence[str], colour: str) -> Html:
    """A curve through "x,y" places, and a dot where it is now."""
    x, y = places[-1].split(",")
    return Html(
        '<polyline points="{places}" stroke="{colour}" stroke-width="2" fill="none"/>'
        '<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}"/>'
    ).format(places=" ".join(places), colour=colour, x=x, y=y)


def _text(y: int, size: int, text: str) -> Html:
    return Html('<text x="4" y="{}" font-size="{}" fill="{}">{}</text>').format(y, size, INK, text)

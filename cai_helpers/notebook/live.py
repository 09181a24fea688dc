"""Training as it happens, in a notebook: figures, curves and alarms in one place that is drawn again, not printed again."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from IPython.display import HTML, display

from cai_helpers.notebook.markup import Html, table
from cai_helpers.pages.canvas import BLUE, GREY, INK, ORANGE, RED
from cai_helpers.training.watch.history import Progress, Watcher, duration
from cai_helpers.workspace import Workspace

_EVERY = 2.0  # seconds between two drawings; the last one is always drawn
_WIDTH, _HEIGHT = 250, 120  # pixels of one curve
_CELL = "text-align:left;padding:2px 14px 2px 0"


class _Curve(NamedTuple):
    title: str
    lines: dict[str, str]  # key of a row → colour
    level: float | None = None  # where nothing is learned


_CURVES = [
    _Curve("loss (orange: held out)", {"loss": BLUE, "eval_loss": ORANGE}, math.log(2)),
    _Curve("accuracy", {"accuracy": BLUE, "eval_accuracy": ORANGE}, 0.5),
    _Curve("rewards: chosen blue, rejected red", {"rewards_chosen": BLUE, "rewards_rejected": RED}, 0),
]


def training(workspace: Workspace) -> Watcher:
    """What `train_dpo(settings, workspace, watch=…)` shows its progress with. It shows nothing before the first row.

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
        figures=_figures(training_rows, evaluations),
        curves=Html("").join(_svg(curve, progress.rows) for curve in _CURVES),
    )


def _figures(training_rows: Sequence[dict], evaluations: Sequence[dict]) -> Html:
    if not training_rows:
        return Html("")
    last = training_rows[-1]
    cells = {
        "loss": f"{last['loss']:.4f}",
        "accuracy": f"{last['accuracy']:.0%}",
        "margin": f"{last['margin']:+.3f}",
        "chosen": f"{last['rewards_chosen']:+.3f}",
        "rejected": f"{last['rewards_rejected']:+.3f}",
        "learning rate": f"{last['lr']:.1e}",
        "tokens/s": f"{last['tokens_per_s']:.0f}",
        "GPU memory": "" if last["memory_gib"] is None else f"{last['memory_gib']:.1f} GiB",
        "held-out loss": f"{evaluations[-1]['eval_loss']:.4f}" if evaluations else "",
        "held-out accuracy": f"{evaluations[-1]['eval_accuracy']:.0%}" if evaluations else "",
    }
    shown = {name: figure for name, figure in cells.items() if figure}
    return table([list(shown.values())], heads=list(shown), style=_CELL)


def _svg(curve: _Curve, rows: Sequence[dict]) -> Html:
    points = {key: [(row["step"], row[key]) for row in rows if row.get(key) is not None] for key in curve.lines}
    everything = [point for line in points.values() for point in line]
    if not everything:
        return Html("")
    values = [value for _, value in everything] + ([] if curve.level is None else [curve.level])
    left, right = min(step for step, _ in everything), max(step for step, _ in everything)
    low, high = min(values), max(values)

    def place(step: float, value: float) -> str:
        x = 4 + (step - left) / max(right - left, 1) * (_WIDTH - 8)
        y = 20 + (high - value) / max(high - low, 1e-9) * (_HEIGHT - 36)
        return f"{x:.1f},{y:.1f}"

    parts = [_text(12, 11, curve.title)]
    if curve.level is not None:
        level = f"{place(left, curve.level)} {place(right, curve.level)}"
        parts.append(Html('<polyline points="{}" stroke="{}" stroke-dasharray="4" fill="none"/>').format(level, GREY))
    parts += [_line([place(*point) for point in line], curve.lines[key]) for key, line in points.items() if line]
    parts.append(_text(_HEIGHT - 3, 10, f"{low:.3g} to {high:.3g}"))
    return Html('<svg width="{}" height="{}" style="background:white;margin-right:10px">{}</svg>').format(
        _WIDTH, _HEIGHT, Html("").join(parts)
    )


def _line(places: Sequence[str], colour: str) -> Html:
    """A curve through "x,y" places, and a dot where it is now."""
    x, y = places[-1].split(",")
    return Html(
        '<polyline points="{places}" stroke="{colour}" stroke-width="2" fill="none"/>'
        '<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}"/>'
    ).format(places=" ".join(places), colour=colour, x=x, y=y)


def _text(y: int, size: int, text: str) -> Html:
    return Html('<text x="4" y="{}" font-size="{}" fill="{}">{}</text>').format(y, size, INK, text)

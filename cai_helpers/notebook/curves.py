"""Curves with axes as SVG, in a millisecond; matplotlib would take as long as a training step.

Text and axes have the colour of the text around them, so that light and dark themes both stay legible.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from cai_helpers.notebook.markup import Html
from cai_helpers.training.watch.alarms import Row
from cai_helpers.training.watch.views import Panel

_WIDTH, _HEIGHT = 300, 172  # pixels of one panel
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 38, 22  # of them around the frame
# Legible on white and on near black; the names are for those who cannot tell the colours.
_COLOUR = {"training": "#2b8cd6", "held out": "#d98200", "chosen": "#2b8cd6", "rejected": "#d9480f"}
_DASH = {"held out": "", "rejected": "5 3"}
_Place = Callable[[float, float], tuple[float, float]]


def curve(panel: Panel, rows: Sequence[Row]) -> Html:
    """One panel; nothing where no row has what it shows."""
    lines = {label: panel.points(key, rows) for key, label in panel.lines.items()}
    everything = [point for line in lines.values() for point in line]
    if not everything:
        return Html("")
    level = panel.level_in(rows)
    steps, values = [step for step, _ in everything], [value for _, value in everything]
    ticks = _ticks(
        min([*values, *([] if level is None else [level])]), max([*values, *([] if level is None else [level])])
    )
    left, right, low, high = min(steps), max(steps), ticks[0], ticks[-1]

    def place(step: float, value: float) -> tuple[float, float]:
        x = _LEFT + (step - left) / max(right - left, 1) * (_WIDTH - _LEFT - _RIGHT)
        y = _TOP + (high - value) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)
        return x, y

    parts = [_head(panel), _frame(place, ticks, sorted({left, right}))]
    if level is not None:
        parts.append(_polyline([place(left, level), place(right, level)], "currentColor", "3 4", 1))
    parts += [_line([place(*point) for point in line], label) for label, line in lines.items() if line]
    return Html(
        '<svg width="{}" height="{}" style="max-width:100%;margin:4px 14px 4px 0;color:inherit" role="img" '
        'fill="currentColor" font-family="sans-serif">{}</svg>'
    ).format(_WIDTH, _HEIGHT, Html("").join(parts))


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers that hold both ends."""
    span = high - low or max(abs(high), 1e-6)
    rough = span / 3
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * round_number for round_number in (1, 2, 5, 10) if power * round_number >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * number for number in range(first, max(last, first + 1) + 1)]


def _head(panel: Panel) -> Html:
    """Title, unit, and the names of the lines in their colours where there are several."""
    title = Html(
        '<text x="0" y="12" font-size="12"><tspan font-weight="bold">{}</tspan> <tspan opacity=".7">{}</tspan></text>'
    )
    parts = [title.format(panel.title, panel.unit)]
    if len(panel.lines) > 1:
        x = _LEFT
        for label in panel.lines.values():
            parts.append(_polyline([(x, 24), (x + 16, 24)], _COLOUR[label], _DASH.get(label, ""), 2))
            parts.append(Html('<text x="{}" y="28" font-size="11">{}</text>').format(x + 20, label))
            x += 100
    return Html("").join(parts)


def _frame(place: _Place, ticks: Sequence[float], steps: Sequence[int]) -> Html:
    grid = Html('<line x1="{}" y1="{:.1f}" x2="{}" y2="{:.1f}" stroke="currentColor" stroke-opacity=".2"/>')
    number = Html('<text x="{}" y="{:.1f}" font-size="10" opacity=".8" text-anchor="end">{:.6g}</text>')
    parts: list[Html] = []
    for tick in ticks:
        _, y = place(steps[0], tick)
        parts.append(grid.format(_LEFT, y, _WIDTH - _RIGHT, y))
        parts.append(number.format(_LEFT - 5, y + 3.5, tick))
    below = Html('<text x="{:.1f}" y="{}" font-size="10" opacity=".8" text-anchor="{}">{}</text>')
    for step in steps:
        x, _ = place(step, ticks[0])
        anchor = "start" if step == steps[0] else "end"
        parts.append(below.format(x, _HEIGHT - 7, anchor, f"step {step}" if anchor == "start" else step))
    return Html("").join(parts)


def _line(places: Sequence[tuple[float, float]], label: str) -> Html:
    """A curve, and a dot where it is now."""
    x, y = places[-1]
    dot = Html('<circle cx="{:.1f}" cy="{:.1f}" r="3" fill="{}"/>').format(x, y, _COLOUR[label])
    return _polyline(places, _COLOUR[label], _DASH.get(label, ""), 2) + dot


def _polyline(places: Sequence[tuple[float, float]], colour: str, dash: str, width: int) -> Html:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return Html('<polyline points="{}" stroke="{}" stroke-width="{}" stroke-dasharray="{}" fill="none"/>').format(
        points, colour, width, dash or "none"
    )

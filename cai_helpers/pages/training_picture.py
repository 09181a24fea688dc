"""How training went: the curves of logs/history.jsonl."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cai_helpers.pages import canvas
from cai_helpers.pages.canvas import BLUE, ORANGE, RED
from cai_helpers.store import read_jsonl
from cai_helpers.training.watch.views import view_of
from cai_helpers.workspace import Workspace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def save_training_plot(workspace: Workspace) -> Path:
    """Draw logs/history.jsonl to reports/training.png."""
    history = workspace.require(workspace.history, made_by="train")
    return canvas.save(training(list(read_jsonl(history))), workspace.picture("training"))


LINE_COLOUR = {"training": BLUE, "held out": ORANGE, "chosen": BLUE, "rejected": RED}


def training(rows: Sequence[dict[str, Any]]) -> Figure:
    """Curves of logs/history.jsonl. Watch the log-probabilities: chosen answers that fall far are being forgotten."""
    shown = view_of(rows).panels
    columns = 2 if len(shown) == 4 else 3
    lines = math.ceil(len(shown) / columns)
    figure, frames = canvas.canvas(columns=columns, rows=lines, width=11, height=3.1 * lines)
    for axes, panel in zip(frames, shown, strict=True):
        for key, label in panel.lines.items():
            _curve(axes, label, panel.points(key, rows))
        level = panel.level_in(rows)
        if level is not None:
            canvas.level(axes, y=level, dashed=True)
        if len(axes.get_legend_handles_labels()[0]) > 1:
            axes.legend(frameon=False)
        canvas.finish(axes, panel.title, "step", panel.unit)
        if level is not None and panel.note:
            place = {"xycoords": ("axes fraction", "data"), "ha": "right"}
            canvas.note(axes, panel.note, (1, level), (-4, 4), **place)
    return figure


def _curve(axes: Axes, label: str, points: Sequence[tuple[int, float]]) -> None:
    if points:
        marker = "o" if len(points) == 1 or label == "held out" else None
        axes.plot(*zip(*points, strict=True), color=LINE_COLOUR[label], marker=marker, markersize=5, label=label)

"""How training went: the curves of logs/history.jsonl."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cai_helpers.pages import canvas
from cai_helpers.pages.canvas import BLUE, ORANGE, RED
from cai_helpers.store import read_jsonl
from cai_helpers.workspace import Workspace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def save_training_plot(workspace: Workspace) -> Path:
    """Draw logs/history.jsonl to reports/training.png."""
    history = workspace.require(workspace.history, made_by="train")
    return canvas.save(training(list(read_jsonl(history))), workspace.picture("training"))


class Panel(NamedTuple):
    """One panel of the training curves: rows of the history drawn by their keys."""

    title: str
    unit: str
    lines: dict[str, str]  # key → label
    level: float | None = None  # where nothing is learned


_TRAINING = [
    Panel("Loss", "DPO loss", {"loss": "training", "eval_loss": "held out"}, math.log(2)),
    Panel("Accuracy", "pairs ranked right (%)", {"accuracy": "training", "eval_accuracy": "held out"}, 50),
    Panel("Margin", "reward of chosen − rejected", {"margin": "training", "eval_margin": "held out"}, 0),
    Panel(
        "Implicit rewards", "β · log-ratio to Stage 2", {"rewards_chosen": "chosen", "rewards_rejected": "rejected"}, 0
    ),
    Panel("Log-probability", "of an answer (nats)", {"logps_chosen": "chosen", "logps_rejected": "rejected"}),
    Panel("Gradient norm", "before clipping", {"grad_norm": "training"}),
]


_SUPERVISED = [
    Panel("Loss", "nats a token of the answer", {"loss": "training", "eval_loss": "held out"}),
    Panel(
        "Tokens", "most probable one is right (%)", {"token_accuracy": "training", "eval_token_accuracy": "held out"}
    ),
    Panel("Gradient norm", "before clipping", {"grad_norm": "training"}),
]


_UNPAIRED = [Panel("Loss", "KTO loss", {"loss": "training", "eval_loss": "held out"}), *_TRAINING[3:5]]


_LINE_COLOUR = {"training": BLUE, "held out": ORANGE, "chosen": BLUE, "rejected": RED}


def training(rows: Sequence[dict]) -> Figure:
    """Curves of logs/history.jsonl. Watch the log-probabilities: chosen answers that fall far are being forgotten."""
    wanted = _TRAINING
    if any("token_accuracy" in row for row in rows):
        wanted = _SUPERVISED
    elif any("kl" in row for row in rows):
        wanted = _UNPAIRED
    figure, panels = canvas.canvas(columns=3, rows=len(wanted) // 3, width=11, height=3.1 * (len(wanted) // 3))
    begins_at_ln2 = any(abs(row.get("loss", 0) - math.log(2)) < 0.02 for row in rows[:1])  # other losses do not
    for axes, panel in zip(panels, wanted, strict=True):
        for key, label in panel.lines.items():
            _curve(axes, key, label, rows)
        if panel.level is not None and (panel.level != math.log(2) or begins_at_ln2):
            canvas.level(axes, y=panel.level, dashed=True)
        if len(axes.get_legend_handles_labels()[0]) > 1:
            axes.legend(frameon=False)
        canvas.finish(axes, panel.title, "step", panel.unit)
    place = {"xycoords": ("axes fraction", "data"), "ha": "right"}
    if begins_at_ln2 and wanted is _TRAINING:
        canvas.note(panels[0], "ln 2: no preference", (1, math.log(2)), (-4, 4), **place)
    return figure


def _curve(axes: Axes, key: str, label: str, rows: Sequence[dict]) -> None:
    factor = 100 if key.endswith("accuracy") else 1
    points = [(row["step"], factor * row[key]) for row in rows if row.get(key) is not None]
    if points:
        marker = "o" if len(points) == 1 or label == "held out" else None
        axes.plot(*zip(*points, strict=True), color=_LINE_COLOUR[label], marker=marker, markersize=5, label=label)

"""What is shown of a training, method by method, as data: the picture and the live view draw whatever stands here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

_GAP = "reward_gap"


class Panel(NamedTuple):
    """Curves in one frame: rows of the history drawn by their keys."""

    title: str
    unit: str
    lines: dict[str, str]  # key → "training", "held out", "chosen" or "rejected", each of which has its colour
    level: float | None = None  # where nothing is learned
    note: str = ""  # at the level
    factor: int = 1  # a share is drawn as per cent

    def level_in(self, rows: Sequence[dict[str, Any]]) -> float | None:
        """The level, unless it is noted as a beginning and these rows begin elsewhere: another loss has another one."""
        if not self.note or any(abs(row.get("loss", math.inf) - (self.level or 0)) < 0.02 for row in rows[:1]):
            return self.level
        return None

    def points(self, key: str, rows: Sequence[dict[str, Any]]) -> list[tuple[int, float]]:
        """(step, value) of the rows that have one."""
        values = ((row["step"], _value(row, key)) for row in rows)
        return [(step, self.factor * value) for step, value in values if value is not None]


def _value(row: dict[str, Any], key: str) -> float | None:
    """Of the row; the gap between its rewards, which rows of KTO do not have by itself, is taken from them."""
    if not key.endswith(_GAP):
        return row.get(key)
    chosen, rejected = (row.get(f"{key.removesuffix(_GAP)}rewards_{side}") for side in ("chosen", "rejected"))
    return None if chosen is None or rejected is None else chosen - rejected


class Figure(NamedTuple):
    """One number of the latest row."""

    name: str
    key: str
    form: str  # as format() takes it


class View(NamedTuple):
    mark: str  # a key that the rows of this method alone have
    panels: tuple[Panel, ...]
    figures: tuple[Figure, ...]


def _both(key: str) -> dict[str, str]:
    return {key: "training", f"eval_{key}": "held out"}


_REWARDS = Panel(
    "Implicit rewards", "β · log-ratio to Stage 2", {"rewards_chosen": "chosen", "rewards_rejected": "rejected"}, 0
)
_LOG_PROBABILITY = Panel(
    "Log-probability", "of an answer (nats)", {"logps_chosen": "chosen", "logps_rejected": "rejected"}
)
_GRADIENT_NORM = Panel("Gradient norm", "before clipping", {"grad_norm": "training"})
_LOSS, _HELD_OUT_LOSS = Figure("loss", "loss", ".4f"), Figure("held-out loss", "eval_loss", ".4f")

OF_PAIRS = View(
    mark="margin",
    panels=(
        Panel("Loss", "DPO loss", _both("loss"), math.log(2), note="ln 2: no preference"),
        Panel("Accuracy", "pairs ranked right (%)", _both("accuracy"), 50, factor=100),
        Panel("Margin", "reward of chosen − rejected", _both("margin"), 0),
        _REWARDS,
        _LOG_PROBABILITY,
        _GRADIENT_NORM,
    ),
    figures=(
        _LOSS,
        Figure("accuracy", "accuracy", ".0%"),
        Figure("margin", "margin", "+.3f"),
        Figure("chosen", "rewards_chosen", "+.3f"),
        Figure("rejected", "rewards_rejected", "+.3f"),
        _HELD_OUT_LOSS,
        Figure("held-out accuracy", "eval_accuracy", ".0%"),
    ),
)
OF_ANSWERS = View(
    mark="kl",
    panels=(
        Panel("Loss", "KTO loss", _both("loss")),
        Panel("Margin", "reward of desirable − undesirable", _both(_GAP), 0),
        _REWARDS,
        _LOG_PROBABILITY,
    ),
    figures=(
        _LOSS,
        Figure("desirable", "rewards_chosen", "+.3f"),
        Figure("undesirable", "rewards_rejected", "+.3f"),
        Figure("KL", "kl", ".2f"),
        _HELD_OUT_LOSS,
        Figure("held-out KL", "eval_kl", ".2f"),
    ),
)
OF_REVISIONS = View(
    mark="token_accuracy",
    panels=(
        Panel("Loss", "nats a token of the answer", _both("loss")),
        Panel("Tokens", "most probable one is right (%)", _both("token_accuracy"), factor=100),
        _GRADIENT_NORM,
    ),
    figures=(
        _LOSS,
        Figure("tokens right", "token_accuracy", ".0%"),
        _HELD_OUT_LOSS,
        Figure("held-out tokens right", "eval_token_accuracy", ".0%"),
    ),
)


def view_of(rows: Sequence[dict[str, Any]]) -> View:
    """The view of the method that wrote these rows, by its mark; of no rows, that of pairs."""
    views = (OF_ANSWERS, OF_REVISIONS, OF_PAIRS)
    return next((view for view in views if any(view.mark in row for row in rows)), OF_PAIRS)

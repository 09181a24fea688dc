"""The method's targets for a DPO run, each held against what was measured: ok, or falls short."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from cai_helpers.intervals import CONFIDENCE, Interval, proportion
from cai_helpers.schema import Record

EPOCHS, ACCURACY, LOSS = 3, 0.65, 0.8  # the published Constitutional AI recipe with DPO reaches an accuracy of 0.67
_LAST_ROWS = 4  # whose mean is the final loss: one batch says little


class Target(Record):
    name: str
    wanted: str
    found: str
    met: bool

    def verdict(self) -> str:
        return "ok" if self.met else "falls short"

    def line(self) -> tuple[str, str]:
        return f"target: {self.name}", f"{self.verdict()}: {self.found} (wanted: {self.wanted})"


def held_against(rows: Sequence[dict[str, Any]], eval_accuracy: float, eval_pairs: int) -> list[Target]:
    """rows: logs/history.jsonl. eval_accuracy: on the `eval_pairs` held-out pairs, of the policy that is kept."""
    training = [row for row in rows if "loss" in row]
    epochs = max(row["epoch"] for row in rows)
    loss = float(np.mean([row["loss"] for row in training[-_LAST_ROWS:]]))
    slope = slope_of([row["epoch"] for row in training], [row["margin"] for row in training])
    return [
        Target(name="epochs", wanted=f"{EPOCHS} done", found=f"{epochs:g}", met=epochs >= EPOCHS - 1e-3),
        Target(
            name="held-out accuracy",
            wanted=f"at least {ACCURACY:.0%}; a coin has 50 %",
            found=f"{proportion(eval_accuracy * eval_pairs, eval_pairs).percent()} of {eval_pairs} pairs",
            met=eval_accuracy >= ACCURACY,
        ),
        Target(
            name="margin trend",
            wanted="rising: the interval of the slope is above 0",
            found="too few rows" if slope is None else f"{slope.number()} an epoch",
            met=slope is not None and slope.low > 0,
        ),
        Target(
            name="final loss",
            wanted=f"below {LOSS}; ln 2 = {math.log(2):.3f} is where it starts",
            found=f"{loss:.4f}, mean of the last {min(_LAST_ROWS, len(training))} rows",
            met=loss < LOSS,
        ),
    ]


def slope_of(places: Sequence[float], values: Sequence[float]) -> Interval | None:
    """Least-squares slope with its 95 % interval, widened for residuals that resemble their neighbours.

    Successive rows of a training log are no independent draws: with a lag-1 autocorrelation r of the residuals, n rows
    are worth n (1 − r) / (1 + r) of them (Bayley & Hammersley 1946; Wilks 2019, section 5.2.4). That number takes the
    place of n in the standard error and in the degrees of freedom of Student's t; a negative r counts as 0, so that the
    interval never becomes narrower than the ordinary one. None of fewer than four rows, or when all places are the same.
    """
    x, y = np.asarray(places, dtype=float), np.asarray(values, dtype=float)
    if len(x) < 4 or np.ptp(x) == 0:
        return None
    spread = float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / spread)
    residuals = y - y.mean() - slope * (x - x.mean())
    worth = max(_independent(residuals), 3.0)  # two of them are spent on the line
    variance = float((residuals**2).sum()) / len(x) * worth / (worth - 2)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, worth - 2)) * math.sqrt(variance / (spread * worth / len(x)))
    return Interval(value=slope, low=slope - half, high=slope + half, n=len(x))


def _independent(residuals: np.ndarray) -> float:
    total = float((residuals**2).sum())
    if total == 0:
        return float(len(residuals))
    r = max(0.0, float((residuals[1:] * residuals[:-1]).sum()) / total)
    return len(residuals) * (1 - r) / (1 + r)

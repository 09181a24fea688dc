"""The method's targets for a DPO run, each held against what was measured: ok, or falls short."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from cai_helpers.measures.intervals import CONFIDENCE, Interval, decimals, proportion
from cai_helpers.schema import Target

EPOCHS, ACCURACY, LOSS = 3, 0.65, 0.8  # the published Constitutional AI recipe with DPO reaches an accuracy of 0.67
_LAST_ROWS = 4  # whose mean is the final loss: one batch says little


def held_against(
    rows: Sequence[dict[str, Any]], eval_accuracy: float, eval_pairs: int, loss_start: float | None
) -> list[Target]:
    """rows: logs/history.jsonl. eval_accuracy: on the `eval_pairs` held-out pairs, of the policy that is kept.

    loss_start: where the loss begins; None for one that has no such value. The target of the loss is for DPO's own,
    which begins at ln 2; another loss has another scale.
    """
    training = [row for row in rows if "loss" in row]
    epochs = max(row["epoch"] for row in rows)
    share = proportion(eval_accuracy * eval_pairs, eval_pairs)
    assert share is not None  # training refuses to start without held-out pairs
    slope = slope_of([row["epoch"] for row in training], [row["margin"] for row in training])
    return [
        Target(name="epochs", aim=f"{EPOCHS} done", found=f"{epochs:g}", ok=epochs >= EPOCHS - 1e-3),
        Target(
            name="held-out accuracy",
            aim=f"at least {ACCURACY:.0%}; a coin has 50 %",
            found=f"{share.percent(ACCURACY)} of {eval_pairs} pairs",
            ok=eval_accuracy >= ACCURACY,
        ),
        Target(
            name="margin trend",
            aim="rising: the interval of the slope is above 0",
            found="too few rows" if slope is None else f"{slope.number(aim=0)} an epoch",
            ok=slope is not None and slope.low > 0,
        ),
        *([_final_loss(training)] if loss_start is not None and math.isclose(loss_start, math.log(2)) else []),
    ]


def _final_loss(training: Sequence[dict[str, Any]]) -> Target:
    loss = float(np.mean([row["loss"] for row in training[-_LAST_ROWS:]]))
    return Target(
        name="final loss",
        aim=f"below {LOSS}; ln 2 = {math.log(2):.3f} is where it starts",
        found=f"{loss:.{decimals(loss, LOSS, 4)}f}, mean of the last {min(_LAST_ROWS, len(training))} rows",
        ok=loss < LOSS,
    )


def slope_of(places: Sequence[float], values: Sequence[float]) -> Interval | None:
    """Least-squares slope with its 95 % interval, widened where neighbouring rows resemble each other.

    The noise is what is left around a parabola: a margin that rises and then flattens has a slope, and its bend is no
    noise. Rows of a training log are no independent draws: when that noise has a lag-1 autocorrelation r, n rows are
    worth n (1 − r) / (1 + r) of them (Bayley & Hammersley 1946; Wilks 2019, section 5.2.4), which takes the place of n in
    the standard error and in Student's degrees of freedom. r found in few rows is too low on average; (1 + 4 r) / n is
    added (Marriott & Pope 1954, Biometrika 41, 390–402). A negative r counts as 0: the interval is never narrower than
    the ordinary one. It does not make up for strong correlation in full: of twenty rows with r = 0.5 it holds the truth
    in 88 % of simulated runs and not in 95 %.

    None of fewer than six rows, or when all places are the same.
    """
    x, y = np.asarray(places, dtype=float), np.asarray(values, dtype=float)
    n = len(x)
    if n < 6 or np.ptp(x) == 0:
        return None
    x = x - x.mean()
    spread = float((x**2).sum())
    slope = float((x * y).sum() / spread)
    noise = y - np.polyval(np.polyfit(x, y, 2), x)
    worth = max(_independent(noise), 4.0)  # three of them are spent on the parabola
    variance = float((noise**2).sum()) / n * worth / (worth - 3)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, worth - 3)) * math.sqrt(variance / (spread * worth / n))
    return Interval(value=slope, low=slope - half, high=slope + half, n=n)


def _independent(noise: np.ndarray) -> float:
    """How many independent values the noise is worth."""
    total = float((noise**2).sum())
    if total == 0:
        return float(len(noise))
    n = len(noise)
    lag1 = float((noise[1:] * noise[:-1]).sum()) / total
    r = min(max(0.0, lag1 + (1 + 4 * lag1) / n), 0.99)
    return n * (1 - r) / (1 + r)

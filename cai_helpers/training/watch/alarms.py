"""What goes wrong in DPO while loss and accuracy look well: each with its threshold, its evidence and what to do.

Pure functions over the rows of logs/history.jsonl (history.py says what a row holds) and over the held-out pairs as they
were measured at the end; the thresholds stand in settings.Alarms.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from cai_helpers.schema import Record
from cai_helpers.settings import Alarms
from cai_helpers.training.watch.held_out import LengthSplit

Row = dict[str, Any]
Detector = Callable[[Sequence[Row], Alarms, float], "Alarm | None"]
OVERFITTING = "overfitting"
_LEAST_ROWS = 5  # gradient norms before one of them can be called a spike
_LEAST_PAIRS = 5  # held-out pairs of either kind before length is judged


class Alarm(Record):
    name: str
    step: int  # at which it was first raised
    threshold: str
    evidence: str
    advice: str

    def line(self) -> str:
        return f"ALARM {self.name} at step {self.step}: {self.evidence} (threshold: {self.threshold}). {self.advice}"


def first_raised(
    rows: Sequence[Row], settings: Alarms, beta: float, detectors: list[Detector] | None = None
) -> list[Alarm]:
    """Each alarm that the rows raise, as it stood at the row that raised it first; in that order.

    It depends on the rows alone, so a resumed run and a report name the same alarms as the log.
    detectors: None: OF_PAIRS.
    """
    raised: dict[str, Alarm] = {}
    for end in range(1, len(rows) + 1):
        for alarm in raised_at_end(rows[:end], settings, beta, detectors):
            raised.setdefault(alarm.name, alarm)
    return list(raised.values())


def raised_at_end(
    rows: Sequence[Row], settings: Alarms, beta: float, detectors: list[Detector] | None = None
) -> list[Alarm]:
    """The alarms that hold at the last of the rows."""
    return [
        alarm
        for detect in (OF_PAIRS if detectors is None else detectors)
        if (alarm := detect(rows, settings, beta)) is not None
    ]


def displacement(rows: Sequence[Row], settings: Alarms, beta: float) -> Alarm | None:
    """Likelihood displacement (Razin et al. 2024, arXiv 2410.08847): the chosen answers become less likely as well.

    The loss in nats, −reward / β, is measured against the reference's log-probability of the very same answers, which
    is logps − reward / β: a share, so that it means the same for short and for long answers.
    """
    recent = _recent(rows, settings.window)
    if recent is None:
        return None
    lost = -_mean(recent, "rewards_chosen") / beta
    at_first = _mean(recent, "logps_chosen") + lost
    if lost <= settings.displacement * abs(at_first):
        return None
    return Alarm(
        name="likelihood displacement",
        step=recent[-1]["step"],
        threshold=f"{settings.displacement:.0%} of the log-probability (alarms.displacement)",
        evidence=f"the chosen answers fell from {at_first:.1f} to {at_first - lost:.1f} nats, rewards/chosen is "
        f"{_mean(recent, 'rewards_chosen'):+.3f}",
        advice="The model unlearns both sides: halve train.learning_rate, raise train.beta, or train fewer epochs.",
    )


def stuck_at_chance(rows: Sequence[Row], settings: Alarms, beta: float) -> Alarm | None:
    """After the first epoch the pairs that were trained on are still told apart no better than by a coin."""
    recent = _recent(rows, settings.window)
    if recent is None or recent[0]["epoch"] < 1:
        return None
    accuracy = _mean(recent, "accuracy")
    if accuracy >= settings.least_accuracy:
        return None
    return Alarm(
        name="stuck at chance",
        step=recent[-1]["step"],
        threshold=f"{settings.least_accuracy:.0%} after the first epoch",
        evidence=f"training accuracy {accuracy:.0%}, margin {_mean(recent, 'margin'):+.3f}",
        advice="Nothing is learned: read pairs in notebook 03 (are the labels right?), then raise train.learning_rate.",
    )


def rejected_only(rows: Sequence[Row], settings: Alarms, beta: float) -> Alarm | None:
    """The margin grows because the rejected answers fall, while the chosen ones gain nothing."""
    recent = _recent(rows, settings.window)
    if recent is None:
        return None
    margin, chosen = _mean(recent, "margin"), _mean(recent, "rewards_chosen")
    if margin < settings.least_margin or chosen > settings.chosen_share * margin:
        return None
    return Alarm(
        name="margin from rejected only",
        step=recent[-1]["step"],
        threshold=f"{settings.chosen_share:.0%} of a margin of {settings.least_margin:g} (alarms.least_margin)",
        evidence=f"margin {margin:+.3f}, of it chosen {chosen:+.3f}",
        advice="Usual where both sides are alike, harmless while it is small; if chosen keeps falling, raise train.beta.",
    )


def overfitting(rows: Sequence[Row], settings: Alarms, beta: float) -> Alarm | None:
    """The held-out loss has risen above its lowest for some evaluations, while the training loss fell on."""
    evaluations = [row for row in rows if "eval_loss" in row]
    training = [row for row in rows if "loss" in row]
    if len(evaluations) <= settings.patience or not training:
        return None
    best = min(evaluations, key=lambda row: row["eval_loss"])
    latest = evaluations[-settings.patience :]
    if best in latest or min(row["eval_loss"] for row in latest) <= best["eval_loss"] + settings.eval_rise:
        return None
    then = _loss_around(training, best["step"], settings.window)
    now = _loss_around(training, latest[-1]["step"], settings.window)
    if now >= then:
        return None
    return Alarm(
        name=OVERFITTING,
        step=latest[-1]["step"],
        threshold=f"{settings.eval_rise:g} above the lowest, {settings.patience} times (alarms.patience)",
        evidence=f"held-out loss {best['eval_loss']:.4f} at step {best['step']}, {latest[-1]['eval_loss']:.4f} now; "
        f"training loss {then:.4f}, {now:.4f} now",
        advice="The best checkpoint is kept whatever comes; train.stop_early=true ends a run here.",
    )


def kl_too_large(rows: Sequence[Row], settings: Alarms, beta: float) -> Alarm | None:
    """How far the policy has gone from Stage 2, in nats an answer: what the side that fell most has lost.

    For answers that Stage 2 wrote, as the drafts are, the mean of log π_ref − log π estimates KL(π_ref ‖ π)
    (the k1 estimator of Schulman 2020, joschu.net/blog/kl-approx.html). Drafts are mostly the rejected side, so this is
    that estimate or above it; the report has the KL a token, of the policy that is kept (drift.token_kl).
    """
    recent = _recent(rows, settings.window)
    if recent is None:
        return None
    distance = -min(_mean(recent, "rewards_chosen"), _mean(recent, "rewards_rejected")) / beta
    if distance <= settings.kl:
        return None
    return Alarm(
        name="KL too large",
        step=recent[-1]["step"],
        threshold=f"{settings.kl:g} nats an answer (alarms.kl)",
        evidence=f"{distance:.0f} nats an answer away from Stage 2",
        advice="The policy leaves what Stage 2 could do: raise train.beta, halve train.learning_rate, read answers.",
    )


def gradient_spike(rows: Sequence[Row], settings: Alarms, beta: float) -> Alarm | None:
    """One gradient norm far above the median of those before it."""
    norms = [(row["step"], row["grad_norm"]) for row in rows if row.get("grad_norm") is not None]
    if len(norms) <= _LEAST_ROWS:
        return None
    step, last = norms[-1]
    usual = statistics.median(norm for _, norm in norms[:-1])
    if last <= settings.gradient_spike * usual:
        return None
    return Alarm(
        name="gradient spike",
        step=step,
        threshold=f"{settings.gradient_spike:g} times the median before",
        evidence=f"norm {last:.2f}, median {usual:.2f}",
        advice="Clipping holds one; if they come back, halve train.learning_rate and look for broken pairs.",
    )


OF_PAIRS: list[Detector] = [
    displacement,
    stuck_at_chance,
    rejected_only,
    overfitting,
    kl_too_large,
    gradient_spike,
]
# The others compare the two sides of a pair, which KTO does not have.
OF_ANSWERS: list[Detector] = [displacement, overfitting, gradient_spike]


def length_learned(split: LengthSplit, settings: Alarms, step: int) -> Alarm | None:
    """Length instead of content: held-out pairs are ranked right where length agrees with most labels, else not.

    Accuracies and not the correlation of margin and length: a margin is a sum over tokens, so it grows with length
    however well the content was learned, but its sign does not.
    """
    if min(split.usual.n, split.other.n) < _LEAST_PAIRS:
        return None
    gap = split.usual.value - split.other.value
    if gap <= settings.length_gap or split.usual.low <= split.other.high:
        return None
    return Alarm(
        name="length instead of content",
        step=step,
        threshold=f"{settings.length_gap:.0%} and intervals apart",
        evidence=f"held-out accuracy {split.usual.percent()} where the chosen side is the {split.direction} one, as in "
        f"most pairs, {split.other.percent()} of {split.other.n} where it is not",
        advice="Balance the lengths of chosen and rejected (notebook 03 shows them) before you trust the result.",
    )


def _recent(rows: Sequence[Row], window: int) -> list[Row] | None:
    """The last `window` training rows; None where there are fewer, or the last row is no training row.

    Rows without rewards, as a method that has no pairs writes them, count as none.
    """
    training = [row for row in rows if "loss" in row and row.get("rewards_chosen") is not None]
    if len(training) < window or not rows or "loss" not in rows[-1]:
        return None
    return training[-window:]


def _mean(rows: Sequence[Row], key: str) -> float:
    return math.fsum(row[key] for row in rows) / len(rows)


def _loss_around(training: Sequence[Row], step: int, window: int) -> float:
    return _mean([row for row in training if row["step"] <= step][-window:] or training[:1], "loss")

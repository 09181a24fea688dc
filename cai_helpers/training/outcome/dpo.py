"""What a DPO run came to: its figures, its targets, its alarms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cai_helpers.schema import Target
from cai_helpers.settings import Settings
from cai_helpers.training.outcome.course import Course, kept_row
from cai_helpers.training.outcome.sft import SftReport
from cai_helpers.training.outcome.targets import held_against
from cai_helpers.training.policy.losses import readable, start_value
from cai_helpers.training.rows.pairs import Preferences
from cai_helpers.training.watch.alarms import length_learned
from cai_helpers.training.watch.held_out import HeldOutPair, LengthSplit, split_by_length


class DpoReport(Course):
    sft: SftReport | None  # the supervised phase before it
    loss: str  # "sigmoid", "sigmoid + 0.5·sft"
    loss_start: float | None  # its value where policy and reference are the same; None: not one number (sft)
    kl: float  # KL(policy ‖ reference), nats a token at the positions of held-out answers: drift.token_kl
    pairs: int
    eval_pairs: int
    too_long: int  # rows of both files, left out because a side would be cut at train.max_length
    longest: int  # tokens
    reference: str
    trained: str
    accuracy_first: float  # at step 1, where all pairs are ties, so 0.5
    accuracy_last: float
    margin_first: float
    margin_last: float
    logps_chosen_first: float  # mean log-probability of the chosen answers; falling far is likelihood displacement
    logps_chosen_last: float
    eval_accuracy: float  # of the checkpoint that was kept
    eval_margin: float  # rewards, so beta times nats
    by_length: LengthSplit | None  # held-out accuracy; None where length and content cannot be told apart
    targets: list[Target]

    def title(self) -> str:
        return "DPO training"

    def lines(self) -> list[tuple[str, str]]:
        left_out = f", {self.too_long} left out as too long" if self.too_long else ""
        unsplit = "cannot be told: all held-out pairs point one way in length"
        return [
            ("pairs", f"{self.pairs} + {self.eval_pairs} held out{left_out}; longest {self.longest} tokens"),
            *([("supervised first", _supervised(self.sft))] if self.sft else []),
            ("loss", self.loss),
            ("reference", self.reference),
            ("trained", self.trained),
            self.steps_line(),
            self.loss_line(),
            ("accuracy first → last", f"{self.accuracy_first:.2f} → {self.accuracy_last:.2f}"),
            ("margin first → last", f"{self.margin_first:+.3f} → {self.margin_last:+.3f}"),
            ("log-probability of chosen", f"{self.logps_chosen_first:.1f} → {self.logps_chosen_last:.1f}"),
            self.held_out_line(),
            ("held-out accuracy", f"{self.eval_accuracy:.2f}"),
            ("KL(policy ‖ reference)", f"{self.kl:.3f} nats a token, on the held-out answers"),
            ("held-out accuracy by length", unsplit if self.by_length is None else self.by_length.line()),
            *self.machine_lines(),
            *((f"target: {target.name}", target.line()) for target in self.targets),
            *self.alarm_lines(),
        ]

    def held_out_line(self) -> tuple[str, str]:
        name, figure = super().held_out_line()
        if self.loss_start is None or self.eval_loss <= self.loss_start:
            return name, figure
        return name, f"{figure}; ABOVE {self.loss_start:.4f}, where it began: the reference is better on these pairs"

    def alarm_lines(self) -> list[tuple[str, str]]:
        return super().alarm_lines() or [("alarms", "none")]

    def summary(self) -> list[tuple[str, str]]:
        shown = ("steps", "accuracy first → last", "margin first → last", "held-out loss")
        first = [("supervised first", _supervised(self.sft))] if self.sft else []
        return first + [
            (f"DPO {name}", figure)
            for name, figure in self.lines()
            if name in shown or name.startswith(("ALARM", "alarms")) or figure.startswith("FALLS SHORT")
        ]


def _supervised(sft: SftReport) -> str:
    return f"{sft.steps} steps on {sft.rows} winning revisions, held-out loss {sft.eval_loss:.4f}"


def report_of(
    course: Course,
    settings: Settings,
    rows: Sequence[dict[str, Any]],
    data: Preferences,
    held_out: list[HeldOutPair],
    sft: SftReport | None,
    kl: float,
) -> DpoReport:
    """rows: of the history. held_out: measured under the policy that is kept."""
    train = settings.train
    weights = train.loss_weights or [1.0] * len(train.loss_type)
    training = [row for row in rows if "loss" in row]
    first, last, kept = training[0], training[-1], kept_row(rows, course.best_step)
    start = start_value(train.loss_type, weights, train.beta, train.label_smoothing, None)
    by_length = split_by_length(held_out)
    by_length_alarm = by_length and length_learned(by_length, settings.alarms, course.best_step)
    own_alarms = [by_length_alarm] if by_length_alarm else []
    return DpoReport(
        **dict(course) | {"alarms": [*course.alarms, *own_alarms]},
        sft=sft,
        loss=readable(train.loss_type, weights),
        loss_start=start,
        kl=kl,
        pairs=len(data.train.rows),
        eval_pairs=len(data.held_out.rows),
        too_long=data.too_long,
        longest=data.longest,
        reference=dict(course.checks)["reference"],
        trained=dict(course.checks)["trained"],
        accuracy_first=first["accuracy"],
        accuracy_last=last["accuracy"],
        margin_first=first["margin"],
        margin_last=last["margin"],
        logps_chosen_first=first["logps_chosen"],
        logps_chosen_last=last["logps_chosen"],
        eval_accuracy=kept["eval_accuracy"],
        eval_margin=kept["eval_margin"],
        by_length=by_length,
        targets=held_against(rows, kept["eval_accuracy"], len(data.held_out.rows), start),
    )

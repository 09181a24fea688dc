"""What a DPO run came to: its figures, its targets, its alarms."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from cai_helpers.schema import StageReport, Target
from cai_helpers.settings import Settings
from cai_helpers.training.outcome.targets import held_against
from cai_helpers.training.policy.losses import readable, start_value
from cai_helpers.training.rows.pairs import Preferences
from cai_helpers.training.sft_phase import SftReport
from cai_helpers.training.watch.alarms import Alarm, length_learned
from cai_helpers.training.watch.held_out import HeldOutPair, LengthSplit, split_by_length

if TYPE_CHECKING:
    from cai_helpers.training.watch.history import TrainingHistory


class TrainReport(StageReport):
    sft: SftReport | None  # the supervised phase before it
    loss: str  # "sigmoid", "sigmoid + 0.5·sft"
    loss_start: float | None  # its value where policy and reference are the same; None: not one number (sft)
    kl: float  # KL(policy ‖ reference), nats a token at the positions of held-out answers: drift.token_kl
    pairs: int
    eval_pairs: int
    too_long: int  # rows of both files, left out because a side would be cut at train.max_length
    longest: int  # tokens
    steps: int
    epochs: float
    precision: str
    reference: str
    trained: str
    checks: list[tuple[str, str]]  # made before the first update: what, found
    loss_first: float  # at step 1, so ln 2
    loss_last: float
    accuracy_first: float  # at step 1, where all pairs are ties, so 0.5
    accuracy_last: float
    margin_first: float
    margin_last: float
    logps_chosen_first: float  # mean log-probability of the chosen answers; falling far is likelihood displacement
    logps_chosen_last: float
    eval_loss: float  # of the checkpoint that was kept, the one with the lowest
    eval_loss_last: float
    eval_accuracy: float
    eval_margin: float  # rewards, so beta times nats
    best_step: int
    skipped_updates: int  # by fp16's gradient scaler, in the last call
    resumed_from: int | None  # step, of the last call
    seconds: float  # all calls together
    tokens_per_s: float | None  # median of the rows of the history
    memory_gib: float | None  # peak on the GPU, of the last call
    by_length: LengthSplit | None  # held-out accuracy; None where length and content cannot be told apart
    targets: list[Target]
    alarms: list[Alarm]
    copies: str | None  # of the last call, where train.copy_to is set

    def title(self) -> str:
        return "DPO training"

    def lines(self) -> list[tuple[str, str]]:
        left_out = f", {self.too_long} left out as too long" if self.too_long else ""
        above = self.loss_start is not None and self.eval_loss > self.loss_start
        vain = f"; ABOVE {self.loss_start:.4f}, where it began: the reference is better on these pairs" if above else ""
        resumed = f", resumed from step {self.resumed_from}" if self.resumed_from else ""
        return [
            ("pairs", f"{self.pairs} + {self.eval_pairs} held out{left_out}; longest {self.longest} tokens"),
            *([("supervised first", _supervised(self.sft))] if self.sft else []),
            ("loss", self.loss),
            ("reference", self.reference),
            ("trained", self.trained),
            ("steps", f"{self.steps} ({self.epochs:g} epochs, {self.precision}) in {self.seconds:.0f} s{resumed}"),
            ("loss first → last", f"{self.loss_first:.4f} → {self.loss_last:.4f}"),
            ("accuracy first → last", f"{self.accuracy_first:.2f} → {self.accuracy_last:.2f}"),
            ("margin first → last", f"{self.margin_first:+.3f} → {self.margin_last:+.3f}"),
            ("log-probability of chosen", f"{self.logps_chosen_first:.1f} → {self.logps_chosen_last:.1f}"),
            (
                "held-out loss",
                f"{self.eval_loss:.4f} at step {self.best_step} (kept); last {self.eval_loss_last:.4f}{vain}",
            ),
            ("held-out accuracy", f"{self.eval_accuracy:.2f}"),
            ("KL(policy ‖ reference)", f"{self.kl:.3f} nats a token, on the held-out answers"),
            *([("updates skipped", str(self.skipped_updates))] if self.skipped_updates else []),
            *self._measured_lines(),
            *((f"target: {target.name}", target.line()) for target in self.targets),
            *(
                (f"ALARM {alarm.name}", f"{alarm.evidence}, from step {alarm.step}. {alarm.advice}")
                for alarm in self.alarms
            ),
            *([] if self.alarms else [("alarms", "none")]),
        ]

    def _measured_lines(self) -> list[tuple[str, str]]:
        unsplit = "cannot be told: all held-out pairs point one way in length"
        memory = "" if self.memory_gib is None else f", peak {self.memory_gib:.1f} GiB"
        speed = [] if self.tokens_per_s is None else [("speed", f"{self.tokens_per_s:.0f} tokens/s{memory}")]
        return [
            ("held-out accuracy by length", unsplit if self.by_length is None else self.by_length.line()),
            *speed,
            *([("copies", self.copies)] if self.copies else []),
        ]

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


def make_report(
    settings: Settings,
    history: TrainingHistory,
    data: Preferences,
    held_out: list[HeldOutPair],
    checks: list[tuple[str, str]],
    best_step: int,
    dtype: str,
    resumed_from: int | None,
    sft: SftReport | None,
    kl: float,
) -> TrainReport:
    """The report of a run whose policy of `best_step` was measured on the held-out pairs."""
    train = settings.train
    weights = train.loss_weights or [1.0] * len(train.loss_type)
    rows = [row for row in history.rows() if "loss" in row]
    evaluations = [row for row in history.rows() if "eval_loss" in row]
    kept = next(row for row in evaluations if row["step"] == best_step)
    found = dict(checks)
    start = start_value(train.loss_type, weights, train.beta, train.label_smoothing, None)
    by_length = split_by_length(held_out)
    by_length_alarm = by_length and length_learned(by_length, settings.alarms, best_step)
    return TrainReport(
        sft=sft,
        loss=readable(train.loss_type, weights),
        loss_start=start,
        kl=kl,
        pairs=len(data.train.rows),
        eval_pairs=len(data.held_out.rows),
        too_long=data.too_long,
        longest=data.longest,
        steps=history.rows()[-1]["step"],
        epochs=history.rows()[-1]["epoch"],
        precision=dtype,
        reference=found["reference"],
        trained=found["trained"],
        checks=checks,
        loss_first=rows[0]["loss"],
        loss_last=rows[-1]["loss"],
        accuracy_first=rows[0]["accuracy"],
        accuracy_last=rows[-1]["accuracy"],
        margin_first=rows[0]["margin"],
        margin_last=rows[-1]["margin"],
        logps_chosen_first=rows[0]["logps_chosen"],
        logps_chosen_last=rows[-1]["logps_chosen"],
        eval_loss=kept["eval_loss"],
        eval_loss_last=evaluations[-1]["eval_loss"],
        eval_accuracy=kept["eval_accuracy"],
        eval_margin=kept["eval_margin"],
        best_step=best_step,
        skipped_updates=history.skipped,
        resumed_from=resumed_from,
        seconds=history.rows()[-1]["seconds"],
        tokens_per_s=statistics.median(row["tokens_per_s"] for row in rows),
        memory_gib=rows[-1]["memory_gib"],
        by_length=by_length,
        targets=held_against(history.rows(), kept["eval_accuracy"], len(data.held_out.rows), start),
        alarms=[*history.alarms(), *([by_length_alarm] if by_length_alarm else [])],
        copies=None,
    )

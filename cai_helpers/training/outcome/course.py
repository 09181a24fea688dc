"""How a training went, whatever its method: what every report has, and says in the same words."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from cai_helpers.machine.hardware import Dtype
from cai_helpers.schema import StageReport
from cai_helpers.training.watch.alarms import Alarm

if TYPE_CHECKING:
    from cai_helpers.training.watch.history import TrainingHistory


class Course(StageReport):
    """The fields with a default are missing in what earlier versions wrote of KTO and supervised fine-tuning."""

    FIRST: ClassVar[tuple[str, ...]] = ("steps", "accuracy", "margin", "held-out", "target", "ALARM", "alarms")

    steps: int
    epochs: float
    precision: str
    checks: list[tuple[str, str]]  # made before the first update: what, found
    loss_first: float  # at step 1: DPO's own is ln 2 there, KTO's half the mean weight of the answers in it
    loss_last: float
    eval_loss: float  # of the checkpoint that was kept, the one with the lowest
    eval_loss_last: float
    best_step: int
    skipped_updates: int = 0  # by fp16's gradient scaler, in the last call
    resumed_from: int | None  # step, of the last call
    seconds: float  # all calls together
    tokens_per_s: float | None = None  # median of the rows of the history
    memory_gib: float | None = None  # peak on the GPU, of the last call
    alarms: list[Alarm] = Field(default_factory=list)
    copies: str | None = None  # of the last call, where train.copy_to is set

    def checked(self, *names: str) -> list[tuple[str, str]]:
        """These of the checks."""
        return [(name, dict(self.checks)[name]) for name in names]

    def steps_line(self) -> tuple[str, str]:
        resumed = f", resumed from step {self.resumed_from}" if self.resumed_from else ""
        return "steps", f"{self.steps} ({self.epochs:g} epochs, {self.precision}) in {self.seconds:.0f} s{resumed}"

    def loss_line(self) -> tuple[str, str]:
        return "loss first → last", f"{self.loss_first:.4f} → {self.loss_last:.4f}"

    def held_out_line(self) -> tuple[str, str]:
        return "held-out loss", f"{self.eval_loss:.4f} at step {self.best_step} (kept); last {self.eval_loss_last:.4f}"

    def machine_lines(self) -> list[tuple[str, str]]:
        """What it took of the machine, and where copies lie."""
        memory = "" if self.memory_gib is None else f", peak {self.memory_gib:.1f} GiB"
        return [
            *([("updates skipped", str(self.skipped_updates))] if self.skipped_updates else []),
            *([] if self.tokens_per_s is None else [("speed", f"{self.tokens_per_s:.0f} tokens/s{memory}")]),
            *([("copies", self.copies)] if self.copies else []),
        ]

    def alarm_lines(self) -> list[tuple[str, str]]:
        return [
            (f"ALARM {alarm.name}", f"{alarm.evidence}, from step {alarm.step}. {alarm.advice}")
            for alarm in self.alarms
        ]


def course_of(
    history: TrainingHistory,
    checks: Sequence[tuple[str, str]],
    best_step: int,
    resumed_from: int | None,
    dtype: Dtype,
    copies: str | None,
) -> Course:
    """Of a training that came to its end."""
    rows = history.rows()
    training = [row for row in rows if "loss" in row]
    evaluations = [row for row in rows if "eval_loss" in row]
    return Course(
        steps=rows[-1]["step"],
        epochs=rows[-1]["epoch"],
        precision=dtype,
        checks=list(checks),
        loss_first=training[0]["loss"],
        loss_last=training[-1]["loss"],
        eval_loss=kept_row(rows, best_step)["eval_loss"],
        eval_loss_last=evaluations[-1]["eval_loss"],
        best_step=best_step,
        skipped_updates=history.skipped,
        resumed_from=resumed_from,
        seconds=rows[-1]["seconds"],
        tokens_per_s=statistics.median(row["tokens_per_s"] for row in training),
        memory_gib=training[-1]["memory_gib"],
        alarms=history.alarms(),
        copies=copies,
    )


def kept_row(rows: Sequence[dict[str, Any]], best_step: int) -> dict[str, Any]:
    """The evaluation of the checkpoint that is kept."""
    return next(row for row in rows if "eval_loss" in row and row["step"] == best_step)

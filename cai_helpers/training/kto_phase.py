"""`cai train` with train.method=kto: resumable, reported, its adapter the result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cai_helpers.machine.hardware import Dtype, this_machine
from cai_helpers.models.language import load_tokenizer
from cai_helpers.schema import StageReport
from cai_helpers.settings import Settings
from cai_helpers.training.policy.reference_store import reference_of
from cai_helpers.training.rows.answers import Unpaired, Weights, balance, read_one_sided, unpair
from cai_helpers.training.rows.pairs import Preferences
from cai_helpers.training.run import run_phase
from cai_helpers.training.watch.alarms import Alarm
from cai_helpers.training.watch.copies import Copies
from cai_helpers.workspace import Workspace

if TYPE_CHECKING:
    from cai_helpers.training.kto import UnpairedHistory


class KtoReport(StageReport):
    desirable: int  # answers that are trained on
    undesirable: int
    one_sided: int  # of both, those that are no side of a pair
    eval_rows: int
    weights: Weights  # of a desirable and of an undesirable answer in the loss
    too_long: int  # pairs and one-sided rows left out because an answer would be cut at train.max_length
    steps: int
    epochs: float
    precision: str
    checks: list[tuple[str, str]]  # made before the first update: what, found
    loss_first: float  # at step 1, so half the mean weight of the answers in it
    loss_last: float
    eval_loss: float  # of the checkpoint that was kept, the one with the lowest
    eval_loss_last: float
    eval_reward_desirable: float | None  # of that checkpoint; beta times nats against Stage 2
    eval_reward_undesirable: float | None
    eval_kl: float  # nats an answer, estimated from mismatched answers
    best_step: int
    skipped_updates: int  # by fp16's gradient scaler, in the last call
    resumed_from: int | None  # step, of the last call
    seconds: float  # all calls together
    alarms: list[Alarm]
    copies: str | None  # of the last call, where train.copy_to is set

    def title(self) -> str:
        return "KTO training"

    def lines(self) -> list[tuple[str, str]]:
        found = dict(self.checks)
        resumed = f", resumed from step {self.resumed_from}" if self.resumed_from else ""
        left_out = f"; {self.too_long} left out as too long" if self.too_long else ""
        rewards = (self.eval_reward_desirable, self.eval_reward_undesirable)
        good, bad = ("none" if reward is None else f"{reward:+.3f}" for reward in rewards)
        return [
            (
                "answers",
                f"{self.desirable} desirable, {self.undesirable} undesirable ({self.one_sided} of them not from a pair) "
                f"+ {self.eval_rows} held out{left_out}",
            ),
            ("weights", f"desirable {self.weights.desirable:.3g}, undesirable {self.weights.undesirable:.3g}"),
            *((name, found[name]) for name in ("reference", "trained", "start", "labels")),
            ("steps", f"{self.steps} ({self.epochs:g} epochs, {self.precision}) in {self.seconds:.0f} s{resumed}"),
            ("loss first → last", f"{self.loss_first:.4f} → {self.loss_last:.4f}"),
            ("held-out loss", f"{self.eval_loss:.4f} at step {self.best_step} (kept); last {self.eval_loss_last:.4f}"),
            ("held-out rewards", f"desirable {good}, undesirable {bad}; KL estimate {self.eval_kl:.2f} nats an answer"),
            *((f"ALARM {alarm.name}", f"step {alarm.step}: {alarm.evidence}") for alarm in self.alarms),
            *([("fp16 updates skipped", str(self.skipped_updates))] if self.skipped_updates else []),
            *([("copies", self.copies)] if self.copies else []),
        ]

    def summary(self) -> list[tuple[str, str]]:
        shown = ("steps", "loss first → last", "held-out loss", "held-out rewards")
        return [(f"KTO {name}", figure) for name, figure in self.lines() if name in shown]


def run_kto(
    settings: Settings,
    workspace: Workspace,
    data: Preferences,
    dtype: Dtype,
    reference_key: str,
    copies: Copies | None,
) -> KtoReport:
    """Train on both sides of the pairs and on the one-sided rows; the adapter is the final one.

    Raises:
        CaiError: the dataset has no one-sided file yet, a check before the first update fails, training cannot go on.
    """
    from cai_helpers.training.kto import UnpairedHistory, build_kto, check_kto
    from cai_helpers.training.policy.lora import save_policy

    def say(message: str, show: bool = True) -> None:
        workspace.say("train", message, show)

    rows = _unpaired(settings, workspace, data, say)
    weights = balance(rows.train)
    folder, tokenizer = workspace.checkpoints, load_tokenizer(settings.models.base)
    reference = reference_of(workspace, reference_key, say)
    trainer = build_kto(settings, folder, rows, weights, tokenizer, dtype, this_machine(), reference)
    checks = check_kto(trainer, settings.models, rows)
    for check in checks:
        say(f"check: {check.what}: {check.found}")

    def copy_out(checkpoint: Path) -> None:
        if copies is not None:
            copies.put(workspace, checkpoint)

    history = UnpairedHistory(workspace.history, folder, dtype == "fp16", say, settings, on_sealed=copy_out)
    best_step, resumed_from = run_phase(trainer, history, folder, say)
    merged = trainer.start.merged
    save_policy(trainer.model, workspace.adapter, settings.models.base, merged and merged.factors)
    say(f"the policy of step {best_step} is in {workspace.adapter}; read back, it equals what was trained")

    said = copies and copies.line()
    too_long = data.too_long + rows.too_long
    return _report(history, rows, weights, checks, too_long, dtype, best_step, resumed_from, said)


def _report(
    history: UnpairedHistory,
    rows: Unpaired,
    weights: Weights,
    checks: list[tuple[str, str]],
    too_long: int,
    dtype: Dtype,
    best_step: int,
    resumed_from: int | None,
    copies: str | None,
) -> KtoReport:
    training = [row for row in history.rows() if "loss" in row]
    evaluations = [row for row in history.rows() if "eval_loss" in row]
    kept = next(row for row in evaluations if row["step"] == best_step)
    desirable = sum(row.label for row in rows.train)
    return KtoReport(
        desirable=desirable,
        undesirable=len(rows.train) - desirable,
        one_sided=sum(row.reason in ("kept", "degenerate") for row in rows.train),
        eval_rows=len(rows.held_out),
        weights=weights,
        too_long=too_long,
        steps=training[-1]["step"],
        epochs=training[-1]["epoch"],
        precision=dtype,
        checks=checks,
        loss_first=training[0]["loss"],
        loss_last=training[-1]["loss"],
        eval_loss=kept["eval_loss"],
        eval_loss_last=evaluations[-1]["eval_loss"],
        eval_reward_desirable=kept["eval_rewards_chosen"],
        eval_reward_undesirable=kept["eval_rewards_rejected"],
        eval_kl=kept["eval_kl"],
        best_step=best_step,
        skipped_updates=history.skipped,
        resumed_from=resumed_from,
        seconds=history.rows()[-1]["seconds"],
        alarms=history.alarms(),
        copies=copies,
    )


def _unpaired(settings: Settings, workspace: Workspace, data: Preferences, say: Callable[[str], None]) -> Unpaired:
    """The rows to train on, with a word about those that are left out."""
    extra = read_one_sided(workspace.require(workspace.one_sided_rows, made_by="curate"))
    rows = unpair(
        data.train.rows,
        data.held_out.rows,
        extra,
        load_tokenizer(settings.models.base),
        settings.train.max_length,
        settings.train.batch_size,
        settings.seed,
    )
    say(
        f"{len(data.train.rows)} pairs and {sum(not row.held_out for row in extra)} one-sided rows, "
        f"{len(rows.train)} answers to train on, {len(rows.held_out)} held out"
    )
    if rows.too_long:
        say(f"WARNING: {rows.too_long} one-sided rows are longer than train.max_length and are left out")
    if rows.alone:
        say(f"{rows.alone} answers left out: alone in the last batch, KTO's KL could not be estimated for them")
    return rows

"""The supervised phase of `cai train`: resumable, reported, its adapter either the result or where DPO starts."""

from __future__ import annotations

from pathlib import Path

from cai_helpers.errors import CaiError
from cai_helpers.machine.hardware import Dtype, this_machine
from cai_helpers.manifest import Fingerprint, plain
from cai_helpers.models.language import load_tokenizer
from cai_helpers.schema import StageReport
from cai_helpers.settings import Settings
from cai_helpers.training.rows.pairs import Preferences, revisions
from cai_helpers.training.run import run_phase
from cai_helpers.workspace import Workspace

# What the phase depends on: DPO's own settings, such as beta, may differ between two runs that share its result.
_SETTINGS = (
    "fresh_adapter sft_epochs sft_learning_rate warmup batch_size accumulation max_length every_steps "
    "lora_r lora_alpha lora_dropout weight_by_delta person_weight"
).split()


class SftReport(StageReport):
    rows: int  # winning revisions
    eval_rows: int
    steps: int
    epochs: float
    precision: str
    checks: list[tuple[str, str]]  # made before the first update: what, found
    loss_first: float  # nats a token of the answers
    loss_last: float
    eval_loss: float  # of the checkpoint that was kept, the one with the lowest
    eval_loss_last: float
    eval_token_accuracy: float  # share of answer tokens that are the most probable one
    best_step: int
    resumed_from: int | None  # step, of the last call
    seconds: float  # all calls together

    def title(self) -> str:
        return "Supervised fine-tuning"

    def lines(self) -> list[tuple[str, str]]:
        found = dict(self.checks)
        resumed = f", resumed from step {self.resumed_from}" if self.resumed_from else ""
        return [
            ("revisions", f"{self.rows} + {self.eval_rows} held out"),
            ("start", found["start"]),
            ("trained", found["trained"]),
            ("labels", found["labels"]),
            ("steps", f"{self.steps} ({self.epochs:g} epochs, {self.precision}) in {self.seconds:.0f} s{resumed}"),
            ("loss first → last", f"{self.loss_first:.4f} → {self.loss_last:.4f}"),
            ("held-out loss", f"{self.eval_loss:.4f} at step {self.best_step} (kept); last {self.eval_loss_last:.4f}"),
            ("held-out tokens right", f"{self.eval_token_accuracy:.2f}"),
        ]

    def summary(self) -> list[tuple[str, str]]:
        shown = ("steps", "loss first → last", "held-out loss")
        return [(f"SFT {name}", figure) for name, figure in self.lines() if name in shown]


def sft_folder(workspace: Workspace) -> Path:
    """Checkpoints of the phase, and adapter/ with its result."""
    return workspace.sft_dir


def sft_history(workspace: Workspace, settings: Settings) -> Path:
    """Before DPO it has a file of its own: the steps of either begin at 1."""
    return workspace.history if settings.train.method == "sft" else workspace.sft_history


def run_sft(settings: Settings, workspace: Workspace, data: Preferences, basis: Fingerprint, dtype: Dtype) -> SftReport:
    """Fine-tune on the winning revisions. The adapter is checkpoints/sft/adapter, for method "sft" the final one too.

    basis: what training as a whole depends on; the phase takes its part of it.

    Raises:
        CaiError: no revision won, a check before the first update fails, or training cannot go on.
    """
    own = {name for name in basis if not name.startswith("train.") or name.removeprefix("train.") in _SETTINGS}
    fingerprint = {name: basis[name] for name in own}
    final = settings.train.method == "sft"  # then it is the stage itself that knows whether it is complete
    if not final and (report := workspace.finished("sft", fingerprint, SftReport)) is not None:
        return report
    manifest = workspace.manifest("sft")
    if manifest is not None and manifest.fingerprint != plain(fingerprint):
        workspace.archive("sft", [sft_folder(workspace), sft_history(workspace, settings)])
    report = _fine_tune(settings, workspace, data, dtype)
    if not final:
        workspace.seal("sft", fingerprint, [sft_folder(workspace) / "adapter"], report)
    return report


def _fine_tune(settings: Settings, workspace: Workspace, data: Preferences, dtype: Dtype) -> SftReport:
    from cai_helpers.training.policy.lora import save_policy
    from cai_helpers.training.sft import SupervisedHistory, build_supervised, check_supervised

    def say(message: str, show: bool = True) -> None:
        workspace.say("sft", message, show)

    train, held_out = revisions(data.train).rows, revisions(data.held_out).rows
    if not train or not held_out:
        raise CaiError(
            f"{len(train)} winning revisions to learn from and {len(held_out)} held out: both are needed.",
            "Set train.method=dpo, which also learns from drafts that won, or generate more pairs.",
        )
    say(f"{len(train)} winning revisions, {len(held_out)} held out, {dtype}")
    folder, tokenizer = sft_folder(workspace), load_tokenizer(settings.models.base)
    trainer = build_supervised(settings, folder, train, held_out, tokenizer, dtype, this_machine())
    checks = check_supervised(trainer, train, settings.models)
    for check in checks:
        say(f"check: {check.what}: {check.found}")
    history = SupervisedHistory(sft_history(workspace, settings), folder, dtype == "fp16", say, settings)
    best_step, resumed_from = run_phase(trainer, history, folder, say)
    save_policy(trainer.model, folder / "adapter", settings.models.base)
    if settings.train.method == "sft":
        merged = trainer.start.merged
        save_policy(trainer.model, workspace.adapter, settings.models.base, merged and merged.factors)
    say(f"the policy of step {best_step} is kept")

    rows = [row for row in history.rows() if "loss" in row]
    evaluations = [row for row in history.rows() if "eval_loss" in row]
    kept = next(row for row in evaluations if row["step"] == best_step)
    return SftReport(
        rows=len(train),
        eval_rows=len(held_out),
        steps=rows[-1]["step"],
        epochs=rows[-1]["epoch"],
        precision=dtype,
        checks=checks,
        loss_first=rows[0]["loss"],
        loss_last=rows[-1]["loss"],
        eval_loss=kept["eval_loss"],
        eval_loss_last=evaluations[-1]["eval_loss"],
        eval_token_accuracy=kept["eval_token_accuracy"],
        best_step=best_step,
        resumed_from=resumed_from,
        seconds=history.rows()[-1]["seconds"],
    )

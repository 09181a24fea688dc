"""DPO on the preference dataset. The reference is Stage 2, checked before the first update; a killed run resumes."""

from __future__ import annotations

import hashlib
import json
import math
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cai_helpers import checkpoints
from cai_helpers.alarms import Alarm, length_learned
from cai_helpers.copies import Copies, open_copies
from cai_helpers.errors import CaiError, NotEnoughPairs
from cai_helpers.hardware import Dtype, choose_dtype, this_machine, use_threads
from cai_helpers.held_out import HeldOutPair, LengthSplit, as_measured, divergence, split_by_length
from cai_helpers.intervals import Interval
from cai_helpers.memory_plan import plan_memory, require_memory
from cai_helpers.models import identity, load_tokenizer, release_memory
from cai_helpers.preference import Preferences, keep_fitting, read_rows
from cai_helpers.schema import StageReport
from cai_helpers.settings import Settings
from cai_helpers.store import write_jsonl
from cai_helpers.targets import Target, held_against
from cai_helpers.workspace import Fingerprint, Workspace, file_hash, section

if TYPE_CHECKING:
    from cai_helpers.dpo import PolicyTrainer
    from cai_helpers.history import TrainingHistory, Watcher

# Settings that change how fast it goes and what is shown, not what comes out: they may change between two calls.
_WITHOUT_EFFECT = {"log_steps", "gradient_checkpointing", "every_minutes", "copy_to", "report_to"}


class TrainReport(StageReport):
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
    best_step: int
    skipped_updates: int  # by fp16's gradient scaler, in the last call
    resumed_from: int | None  # step, of the last call
    seconds: float  # all calls together
    tokens_per_s: float | None  # median of the rows of the history
    memory_gib: float | None  # peak on the GPU, of the last call
    divergence: Interval | None  # from Stage 2, in nats an answer, on the held-out drafts
    by_length: LengthSplit | None  # held-out accuracy; None where length and content cannot be told apart
    targets: list[Target]
    alarms: list[Alarm]
    copies: str | None  # of the last call, where train.copy_to is set

    def title(self) -> str:
        return "DPO training"

    def lines(self) -> list[tuple[str, str]]:
        left_out = f", {self.too_long} left out as too long" if self.too_long else ""
        vain = "; ABOVE ln 2: the reference ranks the held-out pairs better" if self.eval_loss > math.log(2) else ""
        resumed = f", resumed from step {self.resumed_from}" if self.resumed_from else ""
        return [
            ("pairs", f"{self.pairs} + {self.eval_pairs} held out{left_out}; longest {self.longest} tokens"),
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
            *([("updates skipped", str(self.skipped_updates))] if self.skipped_updates else []),
            *self._measured_lines(),
            *(target.line() for target in self.targets),
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
            *(
                [("KL from Stage 2", f"{self.divergence.number()} nats an answer, estimated")]
                if self.divergence
                else []
            ),
            *speed,
            *([("copies", self.copies)] if self.copies else []),
        ]

    def summary(self) -> list[tuple[str, str]]:
        shown = ("steps", "accuracy first → last", "margin first → last", "held-out loss")
        return [
            (f"DPO {name}", figure)
            for name, figure in self.lines()
            if name in shown or name.startswith(("ALARM", "alarms")) or figure.startswith("falls short")
        ]


def train_dpo(
    settings: Settings, workspace: Workspace, fresh: bool = False, watch: Watcher | None = None
) -> TrainReport:
    """Train a LoRA on dpo_dataset/ and write it to models/lora_adapters/, usable by itself on the original base.

    A second call with the same data and settings goes on from the newest good checkpoint, or finds nothing to do.
    fresh: move what earlier calls made to archive/ and start over.
    watch: is given the history after each row, to show it; the lines of the steps then go to logs/run.log alone.

    Raises:
        NotEnoughPairs: fewer pairs than curate.min_pairs; the message has the counts and the reasons.
        SettingsChanged: training was begun with other data or settings; the message is the difference.
        CaiError: a check before the first update fails, the loss or a gradient is not finite, memory runs out.
    """
    if fresh:
        workspace.archive("train", [workspace.checkpoints, workspace.adapter, workspace.history, workspace.held_out])
    fingerprint = _fingerprint(settings, workspace)
    pairs = len(read_rows(workspace.train_rows)) + len(read_rows(workspace.eval_rows))
    _require_enough(pairs, settings, workspace)
    workspace.begin("train", fingerprint)
    if (report := workspace.finished("train", fingerprint, TrainReport)) is not None:
        return report

    copies = open_copies(settings.train.copy_to, fingerprint, lambda message: workspace.say("train", message))
    if fresh and copies is not None:
        copies.set_aside()
    use_threads(settings.threads)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    data = _load_data(settings, workspace)

    from cai_helpers.dpo import explained_memory, quiet_libraries
    from cai_helpers.plots import save_training_plot

    with quiet_libraries(), explained_memory(settings.train):
        report = _train(settings, workspace, data, fingerprint, copies, watch)
    release_memory()  # the evaluation loads models of its own
    save_training_plot(workspace)
    workspace.note_metrics("train", report)
    workspace.seal("train", fingerprint, [workspace.adapter], report)
    return report


def _fingerprint(settings: Settings, workspace: Workspace) -> Fingerprint:
    return {
        "seed": settings.seed,
        "models.base": identity(settings.models.base),
        "models.adapter": identity(settings.models.adapter),
        "models.dtype": settings.models.dtype,
        "input train rows": file_hash(workspace.require(workspace.train_rows, made_by="curate")),
        "input eval rows": file_hash(workspace.require(workspace.eval_rows, made_by="curate")),
        **section("train", settings.train, exclude=_WITHOUT_EFFECT),
        **(section("alarms", settings.alarms) if settings.train.stop_early else {}),  # then they decide how long it is
    }


def _require_enough(pairs: int, settings: Settings, workspace: Workspace, reasons: str = "") -> None:
    if pairs >= settings.curate.min_pairs:
        return
    if workspace.curation_stats.exists():
        dropped = json.loads(workspace.curation_stats.read_text(encoding="utf-8"))["dropped"]
        reasons += "".join(f", {count} dropped as {reason}" for reason, count in dropped.items())
    raise NotEnoughPairs(
        f"{pairs} usable pairs, and training needs curate.min_pairs = {settings.curate.min_pairs}{reasons}.",
        "Generate more pairs (prompts.limit), or look in notebook 03 why they were dropped: fewer teach only noise.",
    )


def _load_data(settings: Settings, workspace: Workspace) -> Preferences:
    """Rows that fit whole, with a loud word about those that do not."""
    tokenizer = load_tokenizer(settings.models.base)
    limit = settings.train.max_length
    train = keep_fitting(read_rows(workspace.train_rows), tokenizer, limit)
    data = Preferences(train, keep_fitting(read_rows(workspace.eval_rows), tokenizer, limit))
    if data.too_long:
        what = f"{data.too_long} are longer than train.max_length = {limit} tokens"
        workspace.say(
            "train", f"WARNING: of the pairs, {what}; they are left out, since a cut answer teaches not to end"
        )
        _require_enough(data.kept, settings, workspace, f", {what}")
    if not data.train.rows or not data.held_out.rows:
        raise CaiError(
            f"{len(data.train.rows)} pairs to train on and {len(data.held_out.rows)} held out: both are needed.",
            "Change curate.eval_fraction, or generate more pairs.",
        )
    return data


def _train(
    settings: Settings,
    workspace: Workspace,
    data: Preferences,
    fingerprint: Fingerprint,
    copies: Copies | None,
    watch: Watcher | None,
) -> TrainReport:
    from cai_helpers.dpo import restore_policy, save_policy
    from cai_helpers.flight import check_flight
    from cai_helpers.history import TrainingHistory

    def say(message: str, show: bool = True) -> None:
        workspace.say("train", message, show)

    machine = this_machine()
    dtype = choose_dtype(settings.models.dtype, machine)
    say(f"{len(data.train.rows)} pairs, {len(data.held_out.rows)} held out, {dtype} on {machine.name}")
    memory = require_memory(plan_memory(settings, dtype, machine, data.longest), settings)
    start = _start(workspace, copies, say)
    trainer = _trainer(settings, workspace, data, dtype, fingerprint)
    checks = [*check_flight(trainer, settings.models, data), ("memory plan", memory.line())]
    for what, found in checks:
        say(f"check: {what}: {found}")

    def copy_out(folder: Path) -> None:
        if copies is not None:
            copies.put(workspace, folder)

    fp16 = dtype == "fp16"
    history = TrainingHistory(workspace.history, workspace.checkpoints, fp16, say, settings, watch, copy_out)
    trainer.add_callback(history)
    _run(trainer, history, start, settings, say)

    best_step = _best_good(history, workspace, say)
    restore_policy(trainer.model, checkpoints.at_step(workspace.checkpoints, best_step))
    save_policy(trainer.model, workspace.adapter, settings.models.base)
    say(f"the policy of step {best_step} is in {workspace.adapter}; read back, it equals what was trained")
    held_out = as_measured(data.held_out.rows, trainer.eval_dataset, trainer.measure_each(trainer.eval_dataset))
    write_jsonl(workspace.held_out, (pair.model_dump() for pair in held_out))
    report = _report(settings, history, data, held_out, checks, best_step, dtype, start and checkpoints.step_of(start))
    return report if copies is None else report.model_copy(update={"copies": copies.line()})


def _start(workspace: Workspace, copies: Copies | None, say: Callable[[str], None]) -> Path | None:
    """The checkpoint to go on from; where there is none here, the newest that this run has copied out."""
    start = checkpoints.newest_good(workspace.checkpoints, say)
    if start is None and copies is not None:
        copies.fetch(workspace)
        start = checkpoints.newest_good(workspace.checkpoints, say)
    return start


def _trainer(
    settings: Settings, workspace: Workspace, data: Preferences, dtype: Dtype, fingerprint: Fingerprint
) -> PolicyTrainer:
    from cai_helpers.dpo import build_trainer

    basis = json.dumps([fingerprint, dtype], sort_keys=True)  # the reference's log-probabilities depend on no more
    return build_trainer(
        settings,
        workspace.checkpoints,
        data.train.rows,
        data.held_out.rows,
        load_tokenizer(settings.models.base),
        dtype,
        this_machine(),
        hashlib.sha256(basis.encode()).hexdigest(),
    )


def _run(
    trainer: PolicyTrainer, history: TrainingHistory, start: Path | None, settings: Settings, say: Callable[[str], None]
) -> None:
    """Train from `start`, a checkpoint or None, to the end."""
    from transformers import set_seed

    if start is not None:
        say(f"going on from {start.name}")
        if checkpoints.is_last(start) or history.stopped_early(checkpoints.step_of(start)):
            return
    set_seed(settings.seed)  # what was drawn before depends on whether the reference was computed or read
    try:
        trainer.train(resume_from_checkpoint=None if start is None else str(start))
    except KeyboardInterrupt:
        raise CaiError(
            f"Stopped by hand at step {trainer.state.global_step} of {trainer.state.max_steps}.",
            "Run `cai train` again to go on from the last checkpoint.",
        ) from None
    finally:
        history.close()


def _best_good(history: TrainingHistory, workspace: Workspace, say: Callable[[str], None]) -> int:
    """The step with the lowest held-out loss whose checkpoint is whole: it is what the user takes home."""
    for evaluation in history.best_first():
        folder = checkpoints.at_step(workspace.checkpoints, evaluation.step)
        if (reason := checkpoints.fault(folder)) is None:
            return evaluation.step
        say(f"{folder.name} is the best but cannot be used: {reason}")
    raise CaiError(
        f"No evaluated checkpoint is whole, or {workspace.history} is gone.", "Run `cai train --fresh`; check the disk."
    )


def _report(
    settings: Settings,
    history: TrainingHistory,
    data: Preferences,
    held_out: list[HeldOutPair],
    checks: list,
    best_step: int,
    dtype: str,
    resumed_from: int | None,
) -> TrainReport:
    rows = [row for row in history.rows() if "loss" in row]
    evaluations = [row for row in history.rows() if "eval_loss" in row]
    kept = next(row for row in evaluations if row["step"] == best_step)
    found = dict(checks)
    by_length = split_by_length(held_out)
    by_length_alarm = by_length and length_learned(by_length, settings.alarms, best_step)
    return TrainReport(
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
        best_step=best_step,
        skipped_updates=history.skipped,
        resumed_from=resumed_from,
        seconds=history.rows()[-1]["seconds"],
        tokens_per_s=statistics.median(row["tokens_per_s"] for row in rows),
        memory_gib=rows[-1]["memory_gib"],
        divergence=divergence(held_out, settings.train.beta),
        by_length=by_length,
        targets=held_against(history.rows(), kept["eval_accuracy"], len(data.held_out.rows)),
        alarms=[*history.alarms(), *([by_length_alarm] if by_length_alarm else [])],
        copies=None,
    )

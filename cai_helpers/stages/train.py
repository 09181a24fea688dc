"""DPO, supervised fine-tuning or both on the preference dataset. The reference is checked before the first update; a
killed run resumes."""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING

from cai_helpers.errors import CaiError, NotEnoughPairs, TrainingRefused
from cai_helpers.gate import Target
from cai_helpers.hardware import Dtype, choose_dtype, this_machine, use_threads
from cai_helpers.losses import readable, start_value
from cai_helpers.models import identity, load_tokenizer, release_memory
from cai_helpers.phase import run_phase
from cai_helpers.preference import Preferences, keep_fitting, read_rows
from cai_helpers.schema import StageReport
from cai_helpers.settings import Settings
from cai_helpers.sft_phase import SftReport, run_sft, sft_folder, sft_history
from cai_helpers.weights import weigh
from cai_helpers.workspace import Fingerprint, Workspace, file_hash, section

if TYPE_CHECKING:
    from cai_helpers.dpo import PolicyTrainer
    from cai_helpers.history import TrainingHistory

# Settings that change how fast it goes and what is shown, not what comes out: they may change between two calls.
_WITHOUT_EFFECT = {"log_steps", "gradient_checkpointing", "sweep_epochs"}
# Of the settings of train, what the reference's log-probabilities depend on: runs that differ in others share them.
_OF_THE_REFERENCE = ("max_length", "batch_size", "ld_alpha", "fresh_adapter", "weight_by_delta", "person_weight")


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
        ]

    def summary(self) -> list[tuple[str, str]]:
        shown = ("steps", "accuracy first → last", "margin first → last", "held-out loss")
        first = [("supervised first", _supervised(self.sft))] if self.sft else []
        return first + [(f"DPO {name}", figure) for name, figure in self.lines() if name in shown]


def _supervised(sft: SftReport) -> str:
    return f"{sft.steps} steps on {sft.rows} winning revisions, held-out loss {sft.eval_loss:.4f}"


def train_dpo(settings: Settings, workspace: Workspace, fresh: bool = False) -> TrainReport | SftReport:
    """Train a LoRA on dpo_dataset/ and write it to models/lora_adapters/, usable by itself on the original base.

    By DPO, by supervised fine-tuning, or by both: train.method.

    A second call with the same data and settings goes on from the newest good checkpoint, or finds nothing to do.
    fresh: move what earlier calls made to archive/ and start over.

    Raises:
        NotEnoughPairs: fewer pairs than curate.min_pairs; the message has the counts and the reasons.
        TrainingRefused: another line of the gate falls short, and curate.strict is set.
        SettingsChanged: training was begun with other data or settings; the message is the difference.
        CaiError: a check before the first update fails, the loss or a gradient is not finite, memory runs out.
    """
    if fresh:
        start_over(settings, workspace)
    fingerprint = _fingerprint(settings, workspace)
    pairs = len(read_rows(workspace.train_rows)) + len(read_rows(workspace.eval_rows))
    _require_enough(pairs, settings, workspace)
    _heed_gate(settings, workspace)
    workspace.begin("train", fingerprint)
    expected = SftReport if settings.train.method == "sft" else TrainReport
    if (report := workspace.finished("train", fingerprint, expected)) is not None:
        return report

    use_threads(settings.threads)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    data = _load_data(settings, workspace)

    from cai_helpers.plots import save_training_plot
    from cai_helpers.policy_trainer import explained_memory, quiet_libraries

    with quiet_libraries(), explained_memory(settings.train):
        report = _train(settings, workspace, data, fingerprint)
    release_memory()  # the evaluation loads models of its own
    save_training_plot(workspace)
    workspace.note_metrics("train", report)
    workspace.seal("train", fingerprint, [workspace.adapter], report)
    return report


def start_over(settings: Settings, workspace: Workspace) -> None:
    """Move what earlier calls made to archive/."""
    workspace.archive("sft", [sft_history(workspace, settings)])
    workspace.archive("train", [workspace.checkpoints, workspace.adapter, workspace.history])


def _fingerprint(settings: Settings, workspace: Workspace) -> Fingerprint:
    return {
        "seed": settings.seed,
        "models.base": identity(settings.models.base),
        "models.adapter": identity(settings.models.adapter),
        "models.dtype": settings.models.dtype,
        "input train rows": file_hash(workspace.require(workspace.train_rows, made_by="curate")),
        "input eval rows": file_hash(workspace.require(workspace.eval_rows, made_by="curate")),
        **section("train", settings.train, exclude=_WITHOUT_EFFECT),
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


def _heed_gate(settings: Settings, workspace: Workspace) -> None:
    """Say what the gate found wrong with the data, and refuse it under curate.strict."""
    if not workspace.curation_stats.exists():
        return
    stats = json.loads(workspace.curation_stats.read_text(encoding="utf-8"))
    missed = [target for target in map(Target.model_validate, stats["gate"]) if not target.ok]
    for target in missed:
        workspace.say("train", f"WARNING: gate: {target.name}: {target.line()}")
    if missed and settings.curate.strict:
        raise TrainingRefused(
            "The pairs fall short in: " + "; ".join(f"{one.name} {one.found} (aim {one.aim})" for one in missed) + ".",
            f"{missed[0].remedy} Or train all the same, without --strict (curate.strict=false).",
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
    weighted = weigh(data.train.rows, settings.train, settings.seed)
    if weighted.said:
        workspace.say("train", weighted.said)
    return data._replace(train=data.train._replace(rows=weighted.rows))


def _train(
    settings: Settings, workspace: Workspace, data: Preferences, fingerprint: Fingerprint
) -> TrainReport | SftReport:
    """Both phases, or the one that train.method names."""
    dtype = choose_dtype(settings.models.dtype, this_machine())
    if settings.train.method == "dpo":
        return _train_by_dpo(settings, workspace, data, fingerprint, dtype, None)
    sft = run_sft(settings, workspace, data, fingerprint, dtype)
    if settings.train.method == "sft":
        return sft
    release_memory()  # DPO loads the model again, with the supervised result on it
    return _train_by_dpo(settings, workspace, data, fingerprint, dtype, sft)


def _train_by_dpo(
    settings: Settings,
    workspace: Workspace,
    data: Preferences,
    fingerprint: Fingerprint,
    dtype: Dtype,
    sft: SftReport | None,
) -> TrainReport:
    from cai_helpers.adapters import save_policy
    from cai_helpers.drift import token_kl
    from cai_helpers.flight import check_flight
    from cai_helpers.history import TrainingHistory

    def say(message: str) -> None:
        workspace.say("train", message)

    say(f"{len(data.train.rows)} pairs, {len(data.held_out.rows)} held out, {dtype} on {this_machine().name}")
    trainer = _trainer(settings, workspace, data, dtype, fingerprint, sft is not None)
    checks = check_flight(trainer, settings.models)
    for check in checks:
        say(f"check: {check.what}: {check.found}")
    history = TrainingHistory(workspace.history, workspace.checkpoints, dtype == "fp16", say)
    best_step, resumed_from = run_phase(trainer, history, workspace.checkpoints, say)
    merged = trainer.start.merged
    save_policy(trainer.model, workspace.adapter, settings.models.base, merged and merged.factors)
    say(f"the policy of step {best_step} is in {workspace.adapter}; read back, it equals what was trained")
    kl = token_kl(trainer)
    return _report(settings, history, data, checks, best_step, dtype, resumed_from, sft, kl)


def _trainer(
    settings: Settings, workspace: Workspace, data: Preferences, dtype: Dtype, fingerprint: Fingerprint, tuned: bool
) -> PolicyTrainer:
    from cai_helpers.dpo import build_trainer

    start = sft_folder(workspace) / "adapter" if tuned else None
    others = {f"train.{name}" for name in type(settings.train).model_fields if name not in _OF_THE_REFERENCE}
    basis = {name: value for name, value in fingerprint.items() if name not in others}
    basis |= {"dtype": dtype, "supervised": start and file_hash(start)}
    return build_trainer(
        settings,
        workspace.checkpoints,
        data.train.rows,
        data.held_out.rows,
        load_tokenizer(settings.models.base),
        dtype,
        this_machine(),
        hashlib.sha256(json.dumps(basis, sort_keys=True).encode()).hexdigest(),
        start,
    )


def _report(
    settings: Settings,
    history: TrainingHistory,
    data: Preferences,
    checks: list,
    best_step: int,
    dtype: str,
    resumed_from: int | None,
    sft: SftReport | None,
    kl: float,
) -> TrainReport:
    train = settings.train
    weights = train.loss_weights or [1.0] * len(train.loss_type)
    rows = [row for row in history.rows() if "loss" in row]
    evaluations = [row for row in history.rows() if "eval_loss" in row]
    kept = next(row for row in evaluations if row["step"] == best_step)
    found = dict(checks)
    return TrainReport(
        sft=sft,
        loss=readable(train.loss_type, weights),
        loss_start=start_value(train.loss_type, weights, train.beta, train.label_smoothing, None),
        kl=kl,
        pairs=len(data.train.rows),
        eval_pairs=len(data.held_out.rows),
        too_long=data.too_long,
        longest=data.longest,
        steps=rows[-1]["step"],
        epochs=rows[-1]["epoch"],
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
    )

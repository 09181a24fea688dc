"""DPO, KTO, supervised fine-tuning or that and DPO on the preference dataset. The reference is checked before the first
update; a killed run resumes."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from cai_helpers.contents import file_hash
from cai_helpers.errors import CaiError, NotEnoughPairs, TrainingRefused
from cai_helpers.machine.hardware import Dtype, choose_dtype, this_machine, use_threads
from cai_helpers.manifest import Fingerprint, section
from cai_helpers.models.batches import release_memory
from cai_helpers.models.hub import identity
from cai_helpers.models.language import load_tokenizer
from cai_helpers.readiness.needs import require_ready
from cai_helpers.schema import Target
from cai_helpers.settings import Settings
from cai_helpers.store import write_jsonl
from cai_helpers.training.kto_phase import KtoReport, run_kto
from cai_helpers.training.memory_plan import plan_memory, require_memory
from cai_helpers.training.outcome.report import TrainReport, make_report
from cai_helpers.training.policy.reference_store import record_of, reference_of
from cai_helpers.training.rows.pairs import Preferences, keep_fitting, read_rows
from cai_helpers.training.rows.weights import weigh
from cai_helpers.training.run import run_phase
from cai_helpers.training.sft_phase import SftReport, run_sft, sft_folder, sft_history
from cai_helpers.training.watch.copies import Copies, open_copies
from cai_helpers.training.watch.held_out import as_measured
from cai_helpers.workspace import Workspace, holds_workspace

if TYPE_CHECKING:
    from cai_helpers.training.dpo import PolicyTrainer
    from cai_helpers.training.watch.history import Watcher

# Settings that change how fast it goes and what is shown, not what comes out: they may change between two calls.
_WITHOUT_EFFECT = {"log_steps", "gradient_checkpointing", "sweep_epochs", "every_minutes", "copy_to", "report_to"}
# Of the settings of train, what the reference's log-probabilities depend on: runs that differ in others share them.
_OF_THE_REFERENCE = ("max_length", "batch_size", "ld_alpha", "fresh_adapter", "weight_by_delta", "person_weight")


@holds_workspace
def train_dpo(
    settings: Settings, workspace: Workspace, fresh: bool = False, watch: Watcher | None = None
) -> TrainReport | SftReport | KtoReport:
    """Train a LoRA on dpo_dataset/ and write it to models/lora_adapters/, usable by itself on the original base.

    By DPO, by KTO, by supervised fine-tuning, or by that and DPO: train.method.

    A second call with the same data and settings goes on from the newest good checkpoint, or finds nothing to do.
    fresh: move what earlier calls made to archive/ and start over.
    watch: is given the history after each row, to show it; the lines of the steps then go to logs/run.log alone.

    Raises:
        NotEnoughPairs: fewer pairs than curate.min_pairs; the message has the counts and the reasons.
        TrainingRefused: another line of the gate falls short, and curate.strict is set.
        SettingsChanged: training was begun with other data or settings; the message is the difference.
        CaiError: a check before the first update fails, the loss or a gradient is not finite, memory runs out.
    """
    if fresh:
        require_ready(settings, workspace, "train")  # before anything is moved
        start_over(settings, workspace)
    fingerprint = _fingerprint(settings, workspace)
    pairs = len(read_rows(workspace.train_rows)) + len(read_rows(workspace.eval_rows))
    _require_enough(pairs, settings, workspace)
    _heed_gate(settings, workspace)
    if not workspace.manifest_of("train").exists():
        require_ready(settings, workspace, "train")  # before it counts as begun with what is broken
    workspace.begin("train", fingerprint)
    expected = {"sft": SftReport, "kto": KtoReport}
    if (
        report := workspace.finished("train", fingerprint, expected.get(settings.train.method, TrainReport))
    ) is not None:
        return report

    require_ready(settings, workspace, "train")
    copies = open_copies(settings.train.copy_to, fingerprint, lambda message: workspace.say("train", message))
    if fresh and copies is not None:
        copies.set_aside()
    use_threads(settings.threads)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    data = _load_data(settings, workspace)
    if copies is not None:
        copies.fetch_where_needed(workspace)

    from cai_helpers.pages.training_picture import save_training_plot
    from cai_helpers.training.trainer import explained_memory, quiet_libraries

    with quiet_libraries(), explained_memory(settings.train):
        report = _train(settings, workspace, data, fingerprint, copies, watch)
    release_memory()  # the evaluation loads models of its own
    save_training_plot(workspace)
    workspace.note_metrics("train", report)
    workspace.seal("train", fingerprint, [workspace.adapter], report)
    return report


def start_over(settings: Settings, workspace: Workspace) -> None:
    """Move what earlier calls made to archive/."""
    workspace.archive("sft", [sft_history(workspace, settings)])
    made = [workspace.checkpoints, record_of(workspace), workspace.adapter, workspace.history, workspace.held_out]
    workspace.archive("train", made)


def _fingerprint(settings: Settings, workspace: Workspace) -> Fingerprint:
    return {
        "seed": settings.seed,
        "models.base": identity(settings.models.base),
        "models.adapter": identity(settings.models.adapter),
        "models.dtype": settings.models.dtype,
        "input train rows": file_hash(workspace.require(workspace.train_rows, made_by="curate")),
        "input eval rows": file_hash(workspace.require(workspace.eval_rows, made_by="curate")),
        **_one_sided(settings, workspace),
        **section("train", settings.train, exclude=_WITHOUT_EFFECT),
        **(section("alarms", settings.alarms) if settings.train.stop_early else {}),  # then they decide how long it is
    }


def _one_sided(settings: Settings, workspace: Workspace) -> Fingerprint:
    if settings.train.method != "kto":
        return {}
    return {"input one-sided rows": file_hash(workspace.require(workspace.one_sided_rows, made_by="curate"))}


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
    settings: Settings,
    workspace: Workspace,
    data: Preferences,
    fingerprint: Fingerprint,
    copies: Copies | None,
    watch: Watcher | None,
) -> TrainReport | SftReport | KtoReport:
    """Both phases, or the one that train.method names."""
    dtype = choose_dtype(settings.models.dtype, this_machine())
    if settings.train.method == "kto":
        key = _reference_key(settings, fingerprint, dtype=dtype, method="kto")
        return run_kto(settings, workspace, data, dtype, key, copies)
    if settings.train.method == "dpo":
        return _train_by_dpo(settings, workspace, data, fingerprint, dtype, None, copies, watch)
    if copies is not None:
        workspace.say("train", "WARNING: checkpoints of the supervised phase are not copied to train.copy_to")
    sft = run_sft(settings, workspace, data, fingerprint, dtype)
    if settings.train.method == "sft":
        return sft
    release_memory()  # DPO loads the model again, with the supervised result on it
    return _train_by_dpo(settings, workspace, data, fingerprint, dtype, sft, copies, watch)


def _train_by_dpo(
    settings: Settings,
    workspace: Workspace,
    data: Preferences,
    fingerprint: Fingerprint,
    dtype: Dtype,
    sft: SftReport | None,
    copies: Copies | None,
    watch: Watcher | None,
) -> TrainReport:
    from cai_helpers.training.checks import check_flight
    from cai_helpers.training.outcome.drift import token_kl
    from cai_helpers.training.policy.lora import save_policy
    from cai_helpers.training.watch.history import TrainingHistory

    def say(message: str, show: bool = True) -> None:
        workspace.say("train", message, show)

    machine = this_machine()
    say(f"{len(data.train.rows)} pairs, {len(data.held_out.rows)} held out, {dtype} on {machine.name}")
    memory = require_memory(plan_memory(settings, dtype, machine, data.longest), settings)
    trainer = _trainer(settings, workspace, data, dtype, fingerprint, sft is not None)
    checks = [*check_flight(trainer, settings.models, data), ("memory plan", memory.line())]
    for what, found in checks:
        say(f"check: {what}: {found}")

    def copy_out(folder: Path) -> None:
        if copies is not None:
            copies.put(workspace, folder)

    fp16 = dtype == "fp16"
    history = TrainingHistory(workspace.history, workspace.checkpoints, fp16, say, settings, watch, copy_out)
    best_step, resumed_from = run_phase(trainer, history, workspace.checkpoints, say)
    merged = trainer.start.merged
    save_policy(trainer.model, workspace.adapter, settings.models.base, merged and merged.factors)
    say(f"the policy of step {best_step} is in {workspace.adapter}; read back, it equals what was trained")
    held_out = as_measured(data.held_out.rows, trainer.eval_dataset, trainer.measure_each(trainer.eval_dataset))
    write_jsonl(workspace.held_out, (pair.model_dump() for pair in held_out))
    kl = token_kl(trainer)
    report = make_report(settings, history, data, held_out, checks, best_step, dtype, resumed_from, sft, kl)
    return report if copies is None else report.model_copy(update={"copies": copies.line()})


def _trainer(
    settings: Settings, workspace: Workspace, data: Preferences, dtype: Dtype, fingerprint: Fingerprint, tuned: bool
) -> PolicyTrainer:
    from cai_helpers.training.dpo import build_trainer

    start = sft_folder(workspace) / "adapter" if tuned else None
    key = _reference_key(settings, fingerprint, dtype=dtype, supervised=start and file_hash(start))
    return build_trainer(
        settings,
        workspace.checkpoints,
        data.train.rows,
        data.held_out.rows,
        load_tokenizer(settings.models.base),
        dtype,
        this_machine(),
        reference_of(workspace, key, lambda message: workspace.say("train", message)),
        start,
    )


def _reference_key(settings: Settings, fingerprint: Fingerprint, **more: str | None) -> str:
    """A hash of what the reference's log-probabilities depend on."""
    others = {f"train.{name}" for name in type(settings.train).model_fields if name not in _OF_THE_REFERENCE}
    basis = {name: value for name, value in fingerprint.items() if name not in others} | more
    return hashlib.sha256(json.dumps(basis, sort_keys=True).encode()).hexdigest()

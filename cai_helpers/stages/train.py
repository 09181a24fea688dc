"""DPO, KTO, supervised fine-tuning or that and DPO on the preference dataset. The reference is checked before the first
update; a killed run resumes."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from cai_helpers.calibration.threshold import NO_DIFFERENCE_TRUSTED
from cai_helpers.contents import file_hash
from cai_helpers.errors import CaiError, NotEnoughPairs, TrainingRefused
from cai_helpers.machine.hardware import Dtype, choose_dtype, this_machine, use_threads
from cai_helpers.machine.processes import is_main_process, require_known_launch, this_process
from cai_helpers.manifest import Fingerprint, hash_of_fingerprint, plain, section
from cai_helpers.models.batches import release_all
from cai_helpers.models.hub import identity
from cai_helpers.models.language import load_tokenizer
from cai_helpers.readiness.needs import require_ready
from cai_helpers.schema import Target
from cai_helpers.settings import Settings
from cai_helpers.training.load import load_of_each
from cai_helpers.training.outcome.dpo import DpoReport
from cai_helpers.training.outcome.kto import KtoReport
from cai_helpers.training.outcome.sft import SftReport
from cai_helpers.training.policy.reference_store import record_of, reference_of
from cai_helpers.training.rows.pairs import Preferences, keep_fitting, read_rows
from cai_helpers.training.rows.weights import weigh
from cai_helpers.training.run import Job
from cai_helpers.training.watch.copies import Copies, RunFiles, open_copies
from cai_helpers.workspace import Workspace, holds_workspace

if TYPE_CHECKING:
    from cai_helpers.training.watch.history import Watcher

Report = DpoReport | SftReport | KtoReport

# Settings that change how fast it goes and what is shown, not what comes out: they may change between two calls.
_WITHOUT_EFFECT = {"log_steps", "gradient_checkpointing", "sweep_epochs", "every_minutes", "copy_to", "report_to"}
# Of the settings of train, what the reference's log-probabilities depend on: runs that differ in others share them.
_OF_THE_REFERENCE = ("max_length", "batch_size", "ld_alpha", "fresh_adapter", "weight_by_delta", "person_weight")
# What the supervised phase depends on: DPO's own, such as beta, may differ between two runs that share its result.
_OF_SFT = (
    "fresh_adapter sft_epochs sft_learning_rate warmup batch_size accumulation max_length every_steps "
    "lora_r lora_alpha lora_dropout weight_by_delta person_weight"
).split()


@holds_workspace
def train_policy(settings: Settings, workspace: Workspace, fresh: bool = False, watch: Watcher | None = None) -> Report:
    """Train a LoRA on dpo_dataset/ and write it to models/lora_adapters/, usable by itself on the original base.

    By DPO, by KTO, by supervised fine-tuning, or by that and DPO: train.method.

    Under `accelerate launch` each step's batches are shared out by DDP; the effective batch, the steps and what they are made of
    are those of one process, and checkpoints go on with any number of processes. If the launch asks for FSDP, the frozen base
    is cut up over the processes besides.

    A second call with the same data and settings goes on from the newest good checkpoint, or finds nothing to do.
    fresh: move what earlier calls made to archive/ and start over.
    watch: is given the history after each row, to show it; the lines of the steps then go to logs/run.log alone.

    Raises:
        CaiError: the processes that were launched cannot share a step, or the method trains in one.
        NotEnoughPairs: fewer pairs than curate.min_pairs; the message has the counts and the reasons.
        TrainingRefused: another line of the gate falls short, and curate.strict is set.
        SettingsChanged: training was begun with other data or settings; the message is the difference.
        CaiError: a check before the first update fails, the loss or a gradient is not finite, memory runs out.
    """
    require_known_launch()
    processes = this_process()
    load_of_each(settings.train, processes.count)  # raises where it cannot be divided
    if fresh:
        require_ready(settings, workspace, "train")  # before anything is moved
        start_over(settings, workspace)
        processes.wait()
    fingerprint = _fingerprint(settings, workspace)
    pairs = len(read_rows(workspace.train_rows)) + len(read_rows(workspace.eval_rows))
    _require_enough(pairs, settings, workspace)
    _heed_gate(settings, workspace)
    if not workspace.manifest_of("train").exists():
        require_ready(settings, workspace, "train")  # before it counts as begun with what is broken
    workspace.begin("train", fingerprint | _order(settings, workspace), made=_has_begun(workspace))
    expected: dict[str, type[Report]] = {"sft": SftReport, "kto": KtoReport}
    report_type = expected.get(settings.train.method, DpoReport)
    if (report := workspace.finished("train", fingerprint, report_type)) is not None:
        return report

    require_ready(settings, workspace, "train")
    use_threads(settings.threads)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    data = _load_data(settings, workspace)

    from cai_helpers.pages.training_picture import save_training_plot
    from cai_helpers.training.policy.lora import stamp_settings
    from cai_helpers.training.trainer import explained_memory, quiet_libraries

    with quiet_libraries(), explained_memory(settings.train):
        report = _train(settings, workspace, data, fingerprint, fresh, watch)
    release_all()  # the evaluation loads models of its own
    if processes.is_main:
        stamp_settings(workspace.adapter, hash_of_fingerprint(fingerprint))
        save_training_plot(workspace)
    workspace.note_metrics("train", report)
    workspace.seal("train", fingerprint, [workspace.adapter], report)
    return report


def sft_history(workspace: Workspace, settings: Settings) -> Path:
    """Before DPO it has a file of its own: the steps of either begin at 1."""
    return workspace.history if settings.train.method == "sft" else workspace.sft_history


def start_over(settings: Settings, workspace: Workspace) -> None:
    """Move what earlier calls made to archive/."""
    workspace.archive("sft", [sft_history(workspace, settings)])
    made = [workspace.checkpoints, record_of(workspace), workspace.adapter, workspace.history, workspace.held_out]
    workspace.archive("train", made)


def _has_begun(workspace: Workspace) -> bool:
    """Whether there is anything to go on with: an attempt that failed before its first checkpoint binds nobody."""
    made = (workspace.adapter, workspace.manifest_of("train"), workspace.manifest_of("sft"))
    return any(path.exists() for path in made) or any(workspace.checkpoints.rglob("checkpoint-*"))


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


def _order(settings: Settings, workspace: Workspace) -> Fingerprint:
    """How DPO's pairs are put in order; a complete run of an earlier order stays complete, a half-done one must not go on."""
    begun = workspace.begun("train")
    complete_before = workspace.manifest_of("train").exists() and begun is not None and "order of pairs" not in begun
    return {} if complete_before or "dpo" not in settings.train.method else {"order of pairs": "like lengths together"}


def _one_sided(settings: Settings, workspace: Workspace) -> Fingerprint:
    if settings.train.method != "kto":
        return {}
    return {"input one-sided rows": file_hash(workspace.require(workspace.one_sided_rows, made_by="curate"))}


def _require_enough(pairs: int, settings: Settings, workspace: Workspace, reasons: str = "") -> None:
    if pairs >= settings.curate.min_pairs:
        return
    dropped: dict[str, int] = {}
    if workspace.curation_stats.exists():
        dropped = json.loads(workspace.curation_stats.read_text(encoding="utf-8"))["dropped"]
        reasons += "".join(f", {count} dropped as {reason}" for reason, count in dropped.items())
    if "untrusted" in dropped:
        raise NotEnoughPairs(
            f"{pairs} usable pairs, and training needs curate.min_pairs = {settings.curate.min_pairs}{reasons}: with "
            "curate.min_delta=auto no label counts that the calibration does not trust, and it trusts none.",
            NO_DIFFERENCE_TRUSTED,
        )
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
            "The pairs fall short in: "
            + "; ".join(f"{target.name} {target.found} (aim {target.aim})" for target in missed)
            + ".",
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
    fresh: bool,
    watch: Watcher | None,
) -> Report:
    """Both phases, or the one that train.method names."""
    dtype = choose_dtype(settings.models.dtype, this_machine())
    sft = tuned = None
    if settings.train.method in ("sft", "sft+dpo"):
        sft = _fine_tune(settings, workspace, data, dtype, fingerprint, fresh, watch)
        if settings.train.method == "sft":
            return sft
        tuned = workspace.sft_dir / "adapter"
        release_all()  # DPO loads the model again, with the supervised result on it
    job = Job(
        "train",
        settings,
        workspace,
        dtype,
        this_machine(),
        RunFiles(workspace.checkpoints, workspace.history, workspace),
        workspace.adapter,
        alone=True,
        copies=_copies(settings, workspace, fingerprint, fresh, "training"),
        watch=watch,
    )
    if settings.train.method == "kto":
        from cai_helpers.training.kto import train_by_kto

        key = _reference_key(settings, fingerprint, dtype=dtype, method="kto")
        return train_by_kto(job, data, reference_of(workspace, key, job.say))
    from cai_helpers.training.dpo import train_by_dpo

    key = _reference_key(settings, fingerprint, dtype=dtype, supervised=None if tuned is None else file_hash(tuned))
    return train_by_dpo(job, data, reference_of(workspace, key, job.say), sft, tuned)


def _fine_tune(
    settings: Settings,
    workspace: Workspace,
    data: Preferences,
    dtype: Dtype,
    basis: Fingerprint,
    fresh: bool,
    watch: Watcher | None,
) -> SftReport:
    """The supervised phase: the whole training, or what DPO starts from, in checkpoints/sft/adapter.

    basis: what training as a whole depends on; the phase takes its part of it.
    """
    from cai_helpers.training.sft import train_supervised

    own = {name for name in basis if not name.startswith("train.") or name.removeprefix("train.") in _OF_SFT}
    fingerprint = {name: basis[name] for name in own}
    final = settings.train.method == "sft"  # then it is the stage itself that knows whether it is complete
    if not final and (report := workspace.finished("sft", fingerprint, SftReport)) is not None:
        return report
    manifest = workspace.manifest("sft")
    if manifest is not None and manifest.fingerprint != plain(fingerprint):
        workspace.archive("sft", [workspace.sft_dir, sft_history(workspace, settings)])
    job = Job(
        "sft",
        settings,
        workspace,
        dtype,
        this_machine(),
        RunFiles(workspace.sft_dir, sft_history(workspace, settings), reference=None),
        workspace.adapter if final else workspace.sft_dir / "adapter",
        alone=final,
        copies=_copies(settings, workspace, fingerprint, fresh, "supervised"),
        watch=watch,
    )
    report = train_supervised(job, data)
    if not final:
        workspace.seal("sft", fingerprint, [job.adapter], report)
    return report


def _copies(
    settings: Settings, workspace: Workspace, fingerprint: Fingerprint, fresh: bool, phase: str
) -> Copies | None:
    """fresh: what was copied out before is set aside, so that nothing of it is gone on from."""
    copies = open_copies(settings.train.copy_to, fingerprint, lambda message: workspace.say("train", message), phase)
    if fresh and copies is not None and is_main_process():
        copies.set_aside()
    return copies


def _reference_key(settings: Settings, fingerprint: Fingerprint, **more: str | None) -> str:
    """A hash of what the reference's log-probabilities depend on."""
    others = {f"train.{name}" for name in type(settings.train).model_fields if name not in _OF_THE_REFERENCE}
    basis = {name: value for name, value in fingerprint.items() if name not in others} | more
    return hashlib.sha256(json.dumps(basis, sort_keys=True).encode()).hexdigest()

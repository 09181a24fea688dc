"""Every path of a run, and what each stage left behind.

A stage is complete when its manifest exists: it is written last, holds what the result depended on and the hash
of every output, and `finished` checks both.
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from tqdm.auto import tqdm

from cai_helpers import ground, lock
from cai_helpers.contents import file_hash
from cai_helpers.errors import CaiError, SettingsChanged, WorkspaceVanished
from cai_helpers.machine.processes import is_main_process
from cai_helpers.manifest import (
    Fingerprint,
    Manifest,
    WrittenByAnother,
    all_versions,
    difference,
    plain,
    read_manifest,
    version_line,
)
from cai_helpers.schema import StageReport
from cai_helpers.store import read_json, write_json

DEFAULT_ROOT = Path("artifacts/stage3_constitutional")
ReportType = TypeVar("ReportType", bound=StageReport)


class Workspace:
    """The folder of one run. Nothing is made on disk before something is written."""

    def __init__(self, root: Path | str = DEFAULT_ROOT) -> None:
        self.root = Path(root)
        self.pairs_dir = self.root / "pairs"
        self.prompts = self.pairs_dir / "prompts.jsonl"
        self.prompt_summary = self.pairs_dir / "prompt_summary.json"
        self.eval_prompts = self.pairs_dir / "eval_prompts.jsonl"
        self.traces = self.pairs_dir / "traces.jsonl"
        self.scores = self.pairs_dir / "scores.jsonl"
        self.pairs = self.pairs_dir / "pairs.jsonl"
        self.overrides = self.pairs_dir / "overrides.jsonl"
        self.blind = self.pairs_dir / "blind.jsonl"
        self.calibration = self.root / "calibration" / "result.json"
        self.calibration_scores = self.root / "calibration" / "scores.jsonl"
        self.bakeoff_dir = self.root / "bakeoff"
        self.bakeoff = self.bakeoff_dir / "result.json"
        self.bakeoff_scores = self.bakeoff_dir / "scores.jsonl"
        self.dataset_dir = self.root / "dpo_dataset"
        self.train_rows = self.dataset_dir / "train.jsonl"
        self.eval_rows = self.dataset_dir / "eval.jsonl"
        self.dropped_rows = self.dataset_dir / "dropped.jsonl"
        self.one_sided_rows = self.dataset_dir / "one_sided.jsonl"
        self.curation_stats = self.dataset_dir / "stats.json"
        self.checkpoints = self.root / "checkpoints"
        self.reference_dir = self.checkpoints / "reference"  # log-probabilities
        self.sft_dir = self.checkpoints / "sft"  # of the supervised phase, with adapter/
        self.sweep_dir = self.root / "sweep"  # a workspace for each value
        self.adapter = self.root / "models" / "lora_adapters"
        self.logs = self.root / "logs"
        self.run_log = self.logs / "run.log"
        self.history = self.logs / "history.jsonl"
        self.sft_history = self.logs / "history_sft.jsonl"  # where DPO follows: the steps of either begin at 1
        self.held_out = self.logs / "held_out_pairs.jsonl"
        self.metrics = self.root / "metrics.json"
        self.reports = self.root / "reports"
        self.run_page = self.reports / "report.html"
        self.evaluation_dir = self.root / "evaluation"
        self.answers = self.evaluation_dir / "answers.jsonl"
        self.evaluation_scores = self.evaluation_dir / "scores.jsonl"
        self.responses = self.evaluation_dir / "responses.jsonl"
        self.export_dir = self.root / "export"
        self.settings_file = self.root / "settings.json"
        self._manifests = self.root / "manifests"
        self.reference_record = self._manifests / "reference.json"

    def share_of_traces(self, process: int) -> Path:
        """The file one of several processes writes to: two writers in one file would tear each other's rows."""
        return self.pairs_dir / f"traces.{process}.jsonl"

    def shares_of_traces(self) -> list[Path]:
        """The files of all processes, also of an earlier call that was killed."""
        return sorted(self.pairs_dir.glob("traces.*.jsonl"))

    def calibration_of(self, scorer: str) -> Path:
        """What gold pairs say of a scorer beside the one that labels; `scorer`: its identity."""
        return self.calibration.with_name(f"{hashlib.sha256(scorer.encode()).hexdigest()[:12]}.json")

    def picture(self, name: str) -> Path:
        """reports/NAME.png"""
        return self.reports / f"{name}.png"

    def archive_of(self, stage: str) -> Path:
        """A new folder for what `stage` made so far."""
        return self.root / "archive" / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{stage}-{time.time_ns() % 1000:03d}"

    def run_of_sweep(self, field: str, value: float) -> Workspace:
        """The workspace of one run that a sweep compares."""
        return Workspace(self.sweep_dir / f"{field}={value:g}")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Around everything that writes to the workspace, but for what a person decides in the inspector.

        One process holds it at a time. Under `accelerate launch` the main process holds it for all.

        Raises:
            WorkspaceInUse: another process has it; the message says which one, and since when.
            WorkspaceVanished: the folder is not the one any more that this process began to write to.
        """
        try:
            if not is_main_process():
                ground.open_root(self.root)
                yield
                return
            with lock.hold(self.root) as dead:
                if dead is not None:
                    self.say("workspace", f"taken over from {dead.line()}, which is gone without having said so")
                yield
        except WorkspaceVanished:
            raise
        except (CaiError, OSError):
            ground.require(self.root)  # whatever went wrong, this is the reason to tell
            raise

    def say(self, stage: str, message: str, show: bool = True) -> None:
        """Print one line for the person watching, without tearing a progress bar, and keep it in logs/run.log.

        show: False keeps it in the log alone, for what is shown in another form.
        """
        if show:
            tqdm.write(f"{stage}: {message}")
        ground.open_root(self.root)
        ground.make_folder(self.logs)
        with (
            ground.writing(self.logs),
            self.run_log.open("a", encoding="utf-8", errors="backslashreplace") as file,
        ):
            file.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {stage}: {message}\n")

    def save_settings(self, settings: BaseModel, section: str | None = None) -> None:
        """Keep the settings beside the results, so that the next notebook or command needs none.

        section: only this one, if others are kept already: what another stage was made with stays.
        """
        ground.open_root(self.root)
        values = settings.model_dump(mode="json")
        if section is not None and self.settings_file.exists():
            values = self._kept_settings() | {section: values[section]}
        write_json(self.settings_file, values)

    def _kept_settings(self) -> dict[str, Any]:
        return read_json(self.settings_file, "Delete that file, and name the preset and your own settings once more.")

    def manifest_of(self, stage: str) -> Path:
        """Where the manifest of a stage lies, or will."""
        return self._manifests / f"{stage}.json"

    def manifest(self, stage: str) -> Manifest | None:
        """What a complete stage left behind; None where it is not complete, or another version's, which is said.

        Raises:
            CaiError: the manifest is damaged.
        """
        try:
            return read_manifest(self.manifest_of(stage), stage)
        except WrittenByAnother as reason:
            self.say(stage, f"counts as not complete: its manifest is {reason}")
            return None

    def finished(self, stage: str, fingerprint: Fingerprint, report: type[ReportType]) -> ReportType | None:
        """The report of a complete stage whose inputs, settings and outputs are what they were; else None, and why."""
        try:
            manifest = read_manifest(self.manifest_of(stage), stage)
        except WrittenByAnother as reason:
            self.say(stage, f"runs again: {reason}")
            return None
        if manifest is None:
            return None
        if changes := difference(manifest.fingerprint, plain(fingerprint)):
            self.say(stage, "runs again: " + "; ".join(changes))
            return None
        if touched := [name for name, digest in manifest.outputs.items() if file_hash(self.root / name) != digest]:
            self.say(stage, f"runs again: {', '.join(touched)} changed or disappeared since it was written")
            return None
        try:
            earlier = report.model_validate(manifest.report)
        except ValidationError:
            self.say(stage, f"runs again: {version_line(manifest.versions)}")
            return None
        self.say(stage, f"complete since {manifest.finished}, nothing to do")
        return earlier

    def seal(self, stage: str, fingerprint: Fingerprint, outputs: list[Path], report: StageReport) -> None:
        """Write the stage's manifest. Call it last: its existence means the stage is complete."""
        manifest = Manifest(
            stage=stage,
            fingerprint=plain(fingerprint),
            outputs={str(path.relative_to(self.root)): require_hash(path) for path in outputs},
            report=report.model_dump(mode="json"),
            title=report.title(),
            lines=report.lines(),
            finished=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            versions=all_versions(),
        )
        write_json(self.manifest_of(stage), manifest.model_dump(mode="json"))

    def note_metrics(self, stage: str, report: StageReport) -> None:
        """Put the stage's report into metrics.json, beside those of the other stages."""
        remedy = "Delete that file: each stage that runs again writes its figures anew; the manifests hold them all."
        metrics = read_json(self.metrics, remedy) if self.metrics.exists() else {}
        write_json(self.metrics, {**metrics, stage: report.model_dump(mode="json")})

    def begin(self, stage: str, fingerprint: Fingerprint) -> None:
        """Note what a resumable stage is made with; refuse to go on with something else.

        Raises:
            SettingsChanged: the stage was begun with other settings; the message is their difference.
        """
        before = self.begun(stage)
        if before is None:
            write_json(self._begun_of(stage), plain(fingerprint))
            return
        if changes := difference(before, plain(fingerprint)):
            raise SettingsChanged(
                f"{stage} was begun in {self.root} with other settings: {'; '.join(changes)}.",
                f"Set them back to go on, run `cai {stage} --fresh` to move the old results to archive/ and start "
                "over, or give another --workspace.",
            )

    def begun(self, stage: str) -> Fingerprint | None:
        """What `begin` noted, or None: the stage was not begun."""
        path = self._begun_of(stage)
        remedy = f"It says what the rows were made with: run `cai {stage} --fresh`, which moves them to archive/."
        return read_json(path, remedy) if path.exists() else None

    def _begun_of(self, stage: str) -> Path:
        return self._manifests / f"{stage}.begun.json"

    def archive(self, stage: str, paths: list[Path]) -> None:
        """Move what a stage made to archive/, so that it can start over. Nothing is deleted."""
        marks = [self.manifest_of(stage), self._begun_of(stage)]
        existing = [path for path in [*paths, *marks] if path.exists()]
        if not existing:
            return
        target = self.archive_of(stage)
        for path in existing:
            destination = target / path.relative_to(self.root)
            ground.make_folder(destination.parent)
            path.replace(destination)
        self.say(stage, f"the earlier results are now in {target}")

    def require(self, path: Path, made_by: str) -> Path:
        """`path`, or an error that names the stage and the notebook that make it."""
        if not path.exists():
            stage, notebook = made_by, NOTEBOOK_OF_STAGE[made_by]
            raise CaiError(
                f"{path} does not exist yet: it is made by the {stage} stage.",
                f"Run `cai {stage}` or notebook {notebook} first, with the same --workspace.",
            )
        return path


Stage = TypeVar("Stage", bound=Callable[..., Any])


def holds_workspace(stage: Stage) -> Stage:
    """A stage's public entry, `stage(settings, workspace, …)`: it holds the workspace while it runs."""

    @functools.wraps(stage)
    def alone(settings: BaseModel, workspace: Workspace, *others: Any, **options: Any) -> Any:
        with workspace.held():
            return stage(settings, workspace, *others, **options)

    return alone


NOTEBOOK_OF_STAGE = {
    "download": "01_download_models",
    "bakeoff": "02_generate_pairs",
    "generate": "02_generate_pairs",
    "calibrate": "02_generate_pairs",
    "score": "02_generate_pairs",
    "curate": "03_analyze_pairs",
    "analyze": "03_analyze_pairs",
    "train": "04_train_dpo",
    "evaluate": "05_evaluate",
    "export": "06_export_artifacts",
}


def require_hash(path: Path) -> str:
    digest = file_hash(path)
    if digest is None:
        raise FileNotFoundError(f"a stage sealed {path}, which it did not write")
    return digest

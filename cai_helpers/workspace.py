"""Every path of a run, and what each stage left behind.

A stage is complete when its manifest exists: it is written last, holds what the result depended on and the hash
of every output, and `finished` checks both.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict
from tqdm.auto import tqdm

from cai_helpers import ground, lock
from cai_helpers.contents import file_hash
from cai_helpers.errors import CaiError, SettingsChanged, WorkspaceVanished
from cai_helpers.machine.processes import is_main_process
from cai_helpers.schema import StageReport
from cai_helpers.store import write_json

DEFAULT_ROOT = Path("artifacts/stage3_constitutional")
_LIBRARIES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "huggingface_hub")

Fingerprint = dict[str, Any]  # what a stage's result depends on: setting or "input …" → value or hash
ReportType = TypeVar("ReportType", bound=StageReport)


class Manifest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    fingerprint: Fingerprint
    outputs: dict[str, str]  # path below the workspace → sha256
    report: dict[str, Any]
    title: str  # the report as it was shown: a page can show it without knowing the stage's class
    lines: list[tuple[str, str]]
    finished: str  # UTC
    versions: dict[str, str]


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
        self.bakeoff = self.root / "bakeoff" / "result.json"
        self.dataset_dir = self.root / "dpo_dataset"
        self.train_rows = self.dataset_dir / "train.jsonl"
        self.eval_rows = self.dataset_dir / "eval.jsonl"
        self.dropped_rows = self.dataset_dir / "dropped.jsonl"
        self.one_sided_rows = self.dataset_dir / "one_sided.jsonl"
        self.curation_stats = self.dataset_dir / "stats.json"
        self.checkpoints = self.root / "checkpoints"
        self.adapter = self.root / "models" / "lora_adapters"
        self.logs = self.root / "logs"
        self.history = self.logs / "history.jsonl"
        self.held_out = self.logs / "held_out_pairs.jsonl"
        self.metrics = self.root / "metrics.json"
        self.reports = self.root / "reports"
        self.evaluation_dir = self.root / "evaluation"
        self.answers = self.evaluation_dir / "answers.jsonl"
        self.evaluation_scores = self.evaluation_dir / "scores.jsonl"
        self.responses = self.evaluation_dir / "responses.jsonl"
        self.export_dir = self.root / "export"
        self.settings_file = self.root / "settings.json"
        self._manifests = self.root / "manifests"

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
            (self.logs / "run.log").open("a", encoding="utf-8", errors="backslashreplace") as file,
        ):
            file.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {stage}: {message}\n")

    def save_settings(self, settings: BaseModel, section: str | None = None) -> None:
        """Keep the settings beside the results, so that the next notebook or command needs none.

        section: only this one, if others are kept already: what another stage was made with stays.
        """
        ground.open_root(self.root)
        values = settings.model_dump(mode="json")
        if section is not None and self.settings_file.exists():
            values = json.loads(self.settings_file.read_text(encoding="utf-8")) | {section: values[section]}
        write_json(self.settings_file, values)

    def manifest(self, stage: str) -> Manifest | None:
        path = self._manifests / f"{stage}.json"
        # json and not pydantic's own parser, which refuses the lone surrogates that a model's text may hold
        return Manifest.model_validate(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None

    def finished(self, stage: str, fingerprint: Fingerprint, report: type[ReportType]) -> ReportType | None:
        """The report of a complete stage whose inputs, settings and outputs are what they were; else None, and why."""
        manifest = self.manifest(stage)
        if manifest is None:
            return None
        if changes := difference(manifest.fingerprint, plain(fingerprint)):
            self.say(stage, "runs again: " + "; ".join(changes))
            return None
        if touched := [name for name, digest in manifest.outputs.items() if file_hash(self.root / name) != digest]:
            self.say(stage, f"runs again: {', '.join(touched)} changed or disappeared since it was written")
            return None
        self.say(stage, f"complete since {manifest.finished}, nothing to do")
        return report.model_validate(manifest.report)

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
            versions=library_versions(),
        )
        write_json(self._manifests / f"{stage}.json", manifest.model_dump(mode="json"))

    def note_metrics(self, stage: str, report: StageReport) -> None:
        """Put the stage's report into metrics.json, beside those of the other stages."""
        metrics = json.loads(self.metrics.read_text(encoding="utf-8")) if self.metrics.exists() else {}
        write_json(self.metrics, {**metrics, stage: report.model_dump(mode="json")})

    def begin(self, stage: str, fingerprint: Fingerprint) -> None:
        """Note what a resumable stage is made with; refuse to go on with something else.

        Raises:
            SettingsChanged: the stage was begun with other settings; the message is their difference.
        """
        path = self._manifests / f"{stage}.begun.json"
        if not path.exists():
            write_json(path, plain(fingerprint))
            return
        if changes := difference(json.loads(path.read_text(encoding="utf-8")), plain(fingerprint)):
            raise SettingsChanged(
                f"{stage} was begun in {self.root} with other settings: {'; '.join(changes)}.",
                f"Set them back to go on, run `cai {stage} --fresh` to move the old results to archive/ and start "
                "over, or give another --workspace.",
            )

    def begun(self, stage: str) -> Fingerprint | None:
        """What `begin` noted, or None: the stage was not begun."""
        path = self._manifests / f"{stage}.begun.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def archive(self, stage: str, paths: list[Path]) -> None:
        """Move what a stage made to archive/, so that it can start over. Nothing is deleted."""
        marks = [self._manifests / f"{stage}.json", self._manifests / f"{stage}.begun.json"]
        existing = [path for path in [*paths, *marks] if path.exists()]
        if not existing:
            return
        target = self.root / "archive" / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{stage}-{time.time_ns() % 1000:03d}"
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


def plain(fingerprint: Fingerprint) -> Fingerprint:
    """The fingerprint as JSON gives it back, so that a stored and a fresh one compare equal."""
    return json.loads(json.dumps(fingerprint))


def difference(before: Fingerprint, now: Fingerprint) -> list[str]:
    """Readable lines, one for each entry that differs."""
    return [
        f"{name} was {before.get(name)!r}, now {now.get(name)!r}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]


def section(name: str, settings: BaseModel, exclude: set[str] | None = None) -> Fingerprint:
    """A settings section as fingerprint entries: {"train.beta": 0.1, …}."""
    return {f"{name}.{field}": value for field, value in settings.model_dump(mode="json", exclude=exclude).items()}


def require_hash(path: Path) -> str:
    digest = file_hash(path)
    if digest is None:
        raise FileNotFoundError(f"a stage sealed {path}, which it did not write")
    return digest


def library_versions() -> dict[str, str]:
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "missing"
    return versions

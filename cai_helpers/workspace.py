"""The folder of a run: what each stage left behind, and who writes to it.

A stage is complete when its manifest exists: it is written last, holds what the result depended on and the hash
of every output, and `finished` checks both.
"""

from __future__ import annotations

import contextlib
import functools
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from pydantic import BaseModel, ValidationError

from cai_helpers import failures, ground, lock, screen
from cai_helpers.contents import file_hash
from cai_helpers.errors import CaiError, SettingsChanged, WorkspaceVanished
from cai_helpers.machine.processes import is_main_process, loss_of_another, this_process
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
from cai_helpers.paths import RunPaths
from cai_helpers.schema import StageReport
from cai_helpers.store import read_json, write_json
from cai_helpers.terminal import visible

_METRICS_REMEDY = "Delete that file: each stage that runs again writes its figures anew; the manifests hold them all."

ReportType = TypeVar("ReportType", bound=StageReport)


class Workspace(RunPaths):
    """The folder of one run. Nothing is made on disk before something is written."""

    def run_of_sweep(self, field: str, value: float) -> Workspace:
        """The workspace of one run that a sweep compares."""
        return Workspace(self.sweep_dir / f"{field}={value:g}")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Around everything that writes to the workspace, but for what a person decides in the inspector.

        One process holds it at a time. Under `accelerate launch` the main process holds it for all, from before the first
        of them writes to after the last has.

        Raises:
            WorkspaceInUse: another process has it; the message says which one, and since when.
            CaiError: a process of the launch sees another folder under that name than the main one.
            WorkspaceVanished: the folder is not the one any more that this process began to write to.
        """
        try:
            processes = this_process()
            if not processes.is_main:
                processes.wait()
                ground.open_root(self.root)
                lock.require_seen(self.root)
                yield
                processes.wait()
                return
            with lock.hold(self.root) as dead:
                if dead is not None:
                    self.say("workspace", f"taken over from {dead.line()}, which is gone without having said so")
                processes.wait()
                yield
                processes.wait()
        except WorkspaceVanished:
            raise
        except (Exception, KeyboardInterrupt) as error:
            ground.require(self.root)  # whatever went wrong, this is the reason to tell
            if isinstance(error, CaiError):
                raise
            if (told := failures.told(error) or loss_of_another(error)) is not None:
                raise told from error
            self._keep_traceback(error)
            raise

    def _keep_traceback(self, error: BaseException) -> None:
        """Of what nothing here foresaw: who reports it should not need hours to meet it again."""
        if not self.run_log.exists():  # nothing was begun: nothing is left behind
            return
        with contextlib.suppress(OSError, CaiError):
            self.say("error", "".join(traceback.format_exception(error)), show=False)
            error.add_note(f"The traceback is in {self.run_log} as well.")

    def say(self, stage: str, message: str, show: bool = True) -> None:
        """Print one line for the person watching, without tearing a progress bar, and keep it in logs/run.log.

        Of several processes the main one speaks for all. This, and what else writes to the workspace below, does nothing in
        the others.

        show: False keeps it in the log alone, for what is shown in another form.
        """
        if not is_main_process():
            return
        if show:
            screen.write(visible(f"{stage}: {message}"))
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
        if not is_main_process():
            return
        ground.open_root(self.root)
        values = settings.model_dump(mode="json")
        if section is not None and self.settings_file.exists():
            values = self._kept_settings() | {section: values[section]}
        write_json(self.settings_file, values)

    def _kept_settings(self) -> dict[str, Any]:
        return read_json(self.settings_file, "Delete that file, and name the preset and your own settings once more.")

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
        if not self._agrees(stage, manifest):
            self.say(stage, f"runs again: its manifest and {self.metrics} hold different figures, and one was altered")
            return None
        self.say(stage, f"complete since {manifest.finished}, nothing to do")
        return earlier

    def seal(self, stage: str, fingerprint: Fingerprint, outputs: list[Path], report: StageReport) -> None:
        """Write the stage's manifest. Call it last: its existence means the stage is complete."""
        if not is_main_process():
            return
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
        if not is_main_process():
            return
        metrics = read_json(self.metrics, _METRICS_REMEDY) if self.metrics.exists() else {}
        write_json(self.metrics, {**metrics, stage: report.model_dump(mode="json")})

    def _agrees(self, stage: str, manifest: Manifest) -> bool:
        """Whether metrics.json, which repeats what the manifests hold, says the same: else nobody knows which was altered."""
        metrics = read_json(self.metrics, _METRICS_REMEDY) if self.metrics.exists() else {}
        return metrics.get(stage, manifest.report) == manifest.report

    def begin(self, stage: str, fingerprint: Fingerprint, made: bool = True) -> None:
        """Note what a resumable stage is made with; refuse to go on with something else.

        made: False where there is nothing yet that could be gone on with: then it may be anything.

        Raises:
            SettingsChanged: the stage was begun with other settings; the message is their difference.
        """
        before = self.begun(stage)
        if before is None or not made:
            if is_main_process():
                write_json(self.begun_of(stage), plain(fingerprint))
            return
        if changes := difference(before, plain(fingerprint)):
            raise SettingsChanged(
                f"{stage} was begun in {self.root} with other settings: {'; '.join(changes)}.",
                f"Set them back to go on, run `cai {stage} --fresh` to move the old results to archive/ and start "
                "over, or give another --workspace.",
            )

    def begun(self, stage: str) -> Fingerprint | None:
        """What `begin` noted, or None: the stage was not begun."""
        path = self.begun_of(stage)
        remedy = f"It says what the rows were made with: run `cai {stage} --fresh`, which moves them to archive/."
        return read_json(path, remedy) if path.exists() else None

    def archive(self, stage: str, paths: list[Path]) -> None:
        """Move what a stage made to archive/, so that it can start over. Nothing is deleted."""
        marks = [self.manifest_of(stage), self.begun_of(stage)]
        existing = [path for path in [*paths, *marks] if path.exists()]
        if not existing or not is_main_process():
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


Given = TypeVar("Given", bound=BaseModel)
Others = ParamSpec("Others")
Result = TypeVar("Result")


def holds_workspace(
    stage: Callable[Concatenate[Given, Workspace, Others], Result],
) -> Callable[Concatenate[Given, Workspace, Others], Result]:
    """A stage's public entry, `stage(settings, workspace, …)`: it holds the workspace while it runs."""

    @functools.wraps(stage)
    def alone(settings: Given, workspace: Workspace, *others: Others.args, **options: Others.kwargs) -> Result:
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

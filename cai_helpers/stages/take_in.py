"""An archive back into a run: each later stage goes on from it on this machine."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal, get_args

from cai_helpers import ground
from cai_helpers.artifacts.archive import Archive, open_archive
from cai_helpers.artifacts.record import ADAPTER
from cai_helpers.errors import CaiError
from cai_helpers.schema import StageReport
from cai_helpers.settings import Settings, as_override, change_settings
from cai_helpers.workspace import Workspace

What = Literal["run", "pairs", "stage2"]
KINDS: tuple[str, ...] = get_args(What)
_CARDS = {"README.md", "DATASET.md", "USE.md", "manifest.json", "settings.json"}
_OF_PAIRS = ("pairs/", "calibration/")
_STAGES_OF_PAIRS = ("generate", "generate.begun", "score", "calibrate")


class ImportReport(StageReport):
    path: str
    workspace: str
    what: What
    files: int
    complete: list[str]  # stages that are
    to_name: list[str]  # what lay in folders of the other machine

    def title(self) -> str:
        return "Taken in"

    def lines(self) -> list[tuple[str, str]]:
        doing = {
            "run": "the whole run: each stage goes on, or finds nothing to do",
            "pairs": "the pairs alone: curate and train them with your own settings",
            "stage2": "the adapter as Stage 2 of a run that begins here",
        }
        return [
            ("taken in", doing[self.what]),
            ("files", f"{self.files}, each with the hash that was packed"),
            ("stages complete", ", ".join(self.complete) or "none"),
            ("workspace", self.workspace),
            *(("to name", line) for line in self.to_name),
        ]


def import_archive(
    path: Path, workspace: Workspace, what: What = "run", overrides: list[str] | None = None
) -> ImportReport:
    """Restore a run from the zip of `cai export` in an empty workspace.

    what: "pairs", to curate and train them otherwise; "stage2", the adapter alone, as Stage 2 of a new run.
    overrides: settings to change at once, such as "models.base=…" where the base lay in a folder of the other machine.

    Every file is compared before the first is written, and they appear all at once or not at all.

    Raises:
        Hostile: the archive holds what `cai export` never writes.
        CaiError: it is damaged, the workspace is not empty, or it has no adapter to take.
    """
    with open_archive(path) as archive:
        _require_empty(workspace.root)
        archive.require_intact()
        if what == "stage2" and archive.record.adapter is None:
            raise CaiError(
                f"{path} has no adapter: {archive.record.without_adapter}", "Import it as a run or as pairs."
            )
        taken = _targets(archive, what)
        settings = _settings(archive, workspace, what, overrides or [])
        _unpack(archive, taken, workspace)
    workspace.save_settings(settings)
    complete = [file.stem for file in sorted(workspace.manifests.glob("*.json")) if ".begun" not in file.name]
    workspace.say("import", f"{len(taken)} files of {path.name}", show=False)
    return ImportReport(
        path=str(path),
        workspace=str(workspace.root),
        what=what,
        files=len(taken),
        complete=complete,
        to_name=_to_name(settings),
    )


def _require_empty(root: Path) -> None:
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise CaiError(f"{root} is not empty.", "Name a folder that is not there yet: --workspace artifacts/imported")


def _targets(archive: Archive, what: What) -> dict[str, str]:
    """Name in the archive → name in the workspace."""
    if what == "stage2":
        return {
            name: name.replace(ADAPTER, "models/stage2", 1) for name in archive.names if name.startswith(f"{ADAPTER}/")
        }
    names = [name for name in archive.names if name not in _CARDS and not name.endswith(".parquet")]
    names = [name for name in names if not name.startswith("models/base/")]  # it is in this package
    if what == "pairs":
        manifests = {f"manifests/{stage}.json" for stage in _STAGES_OF_PAIRS}
        names = [name for name in names if name.startswith(_OF_PAIRS) or name in manifests]
    return {name: name for name in names}


def _settings(archive: Archive, workspace: Workspace, what: What, overrides: list[str]) -> Settings:
    """Those of the archive; its own constitution and protocols lie in the workspace from now on."""
    settings, own = archive.settings(), []
    for field, name in (("constitution", "constitution.yaml"), ("protocols_file", "protocols.yaml")):
        if getattr(settings.generate, field) and name in archive.names:
            own.append(as_override(f"generate.{field}", workspace.root / name))
    if what == "stage2":
        own.append(as_override("models.adapter", workspace.root / "models" / "stage2"))
    return change_settings(settings, own + overrides)


def _unpack(archive: Archive, targets: dict[str, str], workspace: Workspace) -> None:
    """Into a folder beside the workspace, which takes its name when all is there."""
    root = workspace.root
    draft = root.with_name(f"{root.name}.importing")
    shutil.rmtree(draft, ignore_errors=True)
    for name, target in targets.items():
        file = draft / target
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("xb") as sink:
            for piece in archive.pieces(name):
                sink.write(piece)
    if root.exists():
        root.rmdir()  # it is empty
    draft.replace(root)
    ground.forget(root)  # this process may have met the empty one


def _to_name(settings: Settings) -> list[str]:
    """What the other machine had in a folder, and this one does not."""
    named = {
        "models.base (--model)": settings.models.base,
        "models.adapter (--adapter)": settings.models.adapter,
        "models.reward": settings.models.reward.model,
        "prompts.source (--prompts)": settings.prompts.source,
        "prompts.eval_source": settings.prompts.eval_source,
    }
    return [
        f"{setting}: it was {name.removeprefix('./')}, in a folder of the other machine; give yours"
        for setting, name in named.items()
        if name is not None and name.startswith("./") and not Path(name).exists()
    ]

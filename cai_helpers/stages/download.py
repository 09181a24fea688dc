"""Fetch what the run needs before anything is computed. A second call finds everything in place."""

from __future__ import annotations

from pathlib import Path

from cai_helpers.errors import CaiError
from cai_helpers.machine.hardware import GIB, free_disk
from cai_helpers.models.hub import asked, hub_name, locate
from cai_helpers.schema import StageReport
from cai_helpers.settings import Settings
from cai_helpers.workspace import Workspace

# Weights in one format only: many repositories hold the same model three times.
_PATTERNS = ["*.json", "*.model", "*.safetensors", "*.txt", "*.jinja"]
_PICKLE = ["pytorch_model*.bin"]  # what a repository without safetensors has


class DownloadReport(StageReport):
    folders: dict[str, str]  # role → folder
    gib: dict[str, float]  # role → size on disk

    def title(self) -> str:
        return "Models"

    def lines(self) -> list[tuple[str, str]]:
        return [(role, f"{folder} ({self.gib[role]:.2f} GiB)") for role, folder in self.folders.items()]


def download_models(settings: Settings, workspace: Workspace) -> DownloadReport:
    """Make base, adapter, reward model and judge available on this machine.

    Raises:
        CaiError: a model is gated, missing, or does not fit on the disk; the message says what to do.
    """
    wanted = {
        "base model": settings.models.base,
        "Stage-2 adapter": settings.models.adapter,
        **{_role(place): source.model for place, source in enumerate(settings.models.rewards)},
        "judge": settings.evaluate.scorer.model if settings.evaluate.scorer else None,
    }
    folders = {role: _fetch(name, workspace) for role, name in wanted.items() if name is not None}
    return DownloadReport(
        folders={role: str(folder) for role, folder in folders.items()},
        gib={role: _size(folder) / GIB for role, folder in folders.items()},
    )


def _role(place: int) -> str:
    return "reward model" if place == 0 else f"reward model {place + 1}"


def _fetch(name: str, workspace: Workspace) -> Path:
    local = Path(locate(name))
    if local.is_dir():
        return local
    if hub_name(name) is None:
        raise CaiError(f"There is no folder {local}.", "Check the path, or give a Hub id of the form owner/name.")
    return _fetch_from_hub(name, workspace)


def _fetch_from_hub(name: str, workspace: Workspace) -> Path:
    from huggingface_hub import HfApi, constants, snapshot_download

    repository, revision = hub_name(name) or (name, None)
    info = asked(lambda: HfApi().model_info(repository, revision=revision, files_metadata=True), name)
    files = info.siblings or []
    has_safetensors = any(file.rfilename.endswith(".safetensors") for file in files)
    patterns = _PATTERNS if has_safetensors else _PATTERNS + _PICKLE
    needed = sum(file.size or 0 for file in files if _matches(file.rfilename, patterns))
    free = free_disk(Path(constants.HF_HUB_CACHE))
    if needed > free:
        raise CaiError(
            f"{name} needs {needed / GIB:.1f} GiB, and {free / GIB:.1f} GiB are free.",
            "Free some disk, or set HF_HOME to a larger one.",
        )
    workspace.say("download", f"{name}, {needed / GIB:.2f} GiB (files that are already here are not fetched again)")
    return Path(asked(lambda: snapshot_download(repository, revision=revision, allow_patterns=patterns), name))


def _matches(filename: str, patterns: list[str]) -> bool:
    return any(Path(filename).match(pattern) for pattern in patterns)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

"""Start a notebook: token, Drive, settings, workspace. Outside Colab the same calls work on local folders."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple

from cai_helpers import ground
from cai_helpers.errors import CaiError
from cai_helpers.models.open_models import OPEN_CHOICE
from cai_helpers.notebook import bars
from cai_helpers.paths import DEFAULT_ROOT
from cai_helpers.settings import Settings, change_settings, load_settings
from cai_helpers.workspace import Workspace

_DRIVE = Path("/content/drive")


class Session(NamedTuple):
    settings: Settings
    workspace: Workspace


def start(preset: str, form: dict[str, Any], use_drive: bool = True) -> Session:
    """Settings and workspace of a run that begins here. The settings are kept in the workspace.

    form: what the notebook's form gives, {"base": …, "adapter": …, "prompts": …, "limit": …}; an empty text leaves
    the preset's value. The smoke preset brings its own models and prompts and takes nothing from the form.
    CAI_PRESET, where set, wins over the form's preset: that is how the notebooks are tested.
    """
    bars.take_over()
    fetch_token()
    preset = os.environ.get("CAI_PRESET", preset)
    settings = load_settings(preset, [] if preset == "smoke" else _overrides(form))
    workspace = Workspace(workspace_root(use_drive))
    ground.forget(workspace.root)  # the drive was mounted just now: what is there is where the run begins
    workspace.save_settings(settings)
    return Session(settings, workspace)


_FORM_FIELDS = {
    "base": "models.base",
    "adapter": "models.adapter",
    "prompts": "prompts.source",
    "limit": "prompts.limit",
}


def _overrides(form: dict[str, Any]) -> list[str]:
    return [f"{_FORM_FIELDS[name]}={value}" for name, value in form.items() if value != ""]


def resume(use_drive: bool = True) -> Session:
    """Settings and workspace of a run that an earlier notebook began.

    Raises:
        CaiError: there is none in this place.
    """
    bars.take_over()
    fetch_token()
    workspace = Workspace(workspace_root(use_drive))
    if not workspace.settings_file.exists():
        raise CaiError(
            f"There is no run in {workspace.root} yet.",
            "Open notebook 00_setup first (or run_all instead of them all); in Colab tick use_drive in both.",
        )
    ground.forget(workspace.root)
    ground.open_root(workspace.root)  # from here on it is not made again if the drive is lost
    return Session(load_settings(str(workspace.settings_file)), workspace)


def change(workspace: Workspace, *overrides: str) -> Settings:
    """Change settings of the run, as in change(workspace, "train.method=sft+dpo"), keep them there and return them.

    Raises:
        CaiError: there is no run in this place, no such setting, or a value out of range.
    """
    if not workspace.settings_file.exists():
        raise CaiError(f"There is no run in {workspace.root} yet.", "Run the Settings cell above first.")
    settings = change_settings(load_settings(str(workspace.settings_file)), list(overrides))
    workspace.save_settings(settings)
    return settings


def workspace_root(use_drive: bool) -> Path:
    """CAI_WORKSPACE where set; else a folder on Drive in Colab; else below the current folder."""
    if named := os.environ.get("CAI_WORKSPACE"):
        return Path(named)
    if use_drive and in_colab():
        return mount_drive() / DEFAULT_ROOT
    return DEFAULT_ROOT


def in_colab() -> bool:
    return importlib.util.find_spec("google") is not None and importlib.util.find_spec("google.colab") is not None


def mount_drive() -> Path:
    """Google Drive's folder. Asks for permission the first time.

    Raises:
        CaiError: the permission was not given.
    """
    from google.colab import drive, errors

    try:
        drive.mount(str(_DRIVE))
    except (errors.Error, ValueError) as error:
        raise CaiError(
            f"Google Drive was not mounted: {error}",
            "Allow it in the window that opens, or untick use_drive: then results are lost with the runtime.",
        ) from error
    return _DRIVE / "MyDrive"


def fetch_token() -> None:
    """Put the Colab secret HF_TOKEN where huggingface_hub looks for it. Other machines have it there already."""
    if not in_colab() or "HF_TOKEN" in os.environ:
        return
    from google.colab import userdata

    try:
        os.environ["HF_TOKEN"] = userdata.get("HF_TOKEN")
    except (userdata.SecretNotFoundError, userdata.NotebookAccessError):
        print(
            "No Hub token: add a secret named HF_TOKEN (the key icon on the left) and give this notebook access.\n"
            f"google/gemma-2b-it is gated and needs it. {OPEN_CHOICE}"
        )


def download(path: Path) -> None:
    """Send a file to the browser in Colab; elsewhere say where it lies."""
    if in_colab():
        from google.colab import files

        files.download(str(path))
    else:
        print(f"It is here: {path}")

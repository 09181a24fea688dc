"""Start a notebook: token, Drive, settings, workspace. Outside Colab the same calls work on local folders."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple

from cai_helpers.errors import CaiError
from cai_helpers.settings import Settings, load_settings
from cai_helpers.workspace import DEFAULT_ROOT, Workspace

_DRIVE = Path("/content/drive")


class Session(NamedTuple):
    settings: Settings
    workspace: Workspace


def start(preset: str, use_drive: bool = True, overrides: dict[str, Any] | None = None) -> Session:
    """Settings and workspace of a run that begins here. The settings are kept in the workspace.

    overrides: {"models.adapter": "me/stage2", …}; an empty text means "leave the preset's value".
    CAI_PRESET and CAI_WORKSPACE, where set, win over the form (that is how the notebooks are tested), and the
    preset of the environment is then used as it is, without `overrides`.
    """
    fetch_token()
    chosen = os.environ.get("CAI_PRESET")
    changes = [f"{name}={value}" for name, value in (overrides or {}).items() if value != ""]
    settings = load_settings(chosen) if chosen else load_settings(preset, changes)
    workspace = Workspace(workspace_root(use_drive))
    workspace.save_settings(settings)
    return Session(settings, workspace)


def resume(use_drive: bool = True) -> Session:
    """Settings and workspace of a run that an earlier notebook began.

    Raises:
        CaiError: there is none in this place.
    """
    fetch_token()
    workspace = Workspace(workspace_root(use_drive))
    if not workspace.settings_file.exists():
        raise CaiError(
            f"There is no run in {workspace.root} yet.",
            "Open notebook 02_generate_pairs first (or run_all); in Colab with use_drive ticked in both.",
        )
    return Session(load_settings(str(workspace.settings_file)), workspace)


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
            "google/gemma-2b-it is gated and needs it; open models do not."
        )


def download(path: Path) -> None:
    """Send a file to the browser in Colab; elsewhere say where it lies."""
    if in_colab():
        from google.colab import files

        files.download(str(path))
    else:
        print(f"It is here: {path}")

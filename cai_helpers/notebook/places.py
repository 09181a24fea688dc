"""Where a run lies: in a folder of its name on this machine, and where a copy of it is kept."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from cai_helpers.errors import CaiError

CONTENT = Path("/content")  # Colab's working folder; it goes with the runtime
_NAME = re.compile(r"[A-Za-z0-9][\w.=-]{0,59}")
_DRIVE_TEXT = re.compile(r"^(?:/content/)?(?:drive/)?(My ?Drive)(?:/|$)")
_NOWHERE = ("", "none", "nowhere")


def folder_of(name: str) -> Path:
    """The run's folder on this machine: CAI_WORKSPACE where it is set (tests), /content/cai/NAME in Colab, else cai/NAME.

    Raises:
        CaiError: no folder can have that name.
    """
    if not _NAME.fullmatch(name):
        raise CaiError(
            f"{name!r} cannot be the name of a run.",
            "Type a short one in the form: letters, digits, - and _, such as first or beta-02.",
        )
    if named := os.environ.get("CAI_WORKSPACE"):
        return Path(named)
    return runs_folder() / name


def runs_folder() -> Path:
    """The folder that holds the runs of this machine."""
    return (CONTENT if in_colab() else Path.cwd()) / "cai"


def run_names() -> list[str]:
    """The runs there are on this machine."""
    return sorted(file.parent.name for file in runs_folder().glob("*/settings.json"))


def kept_at(keep: str, name: str) -> str:
    """What the form says about keeping → the place that `keeping.keep` takes: "", a folder, or "hub:owner/name".

    keep: "drive" is MyDrive/cai in Colab, and nothing elsewhere; "none"; a folder, which gets a folder of the run's name;
    "hub:owner/name".

    Raises:
        CaiError: Drive was not mounted.
    """
    keep = keep.strip()
    if keep.lower() in _NOWHERE or (keep.lower() == "drive" and not in_colab()):
        return ""
    if keep.lower() == "drive":
        return str(mount_drive() / "cai" / name)
    if keep.startswith("hub:"):
        return keep
    return str(Path(path_of(keep)).expanduser() / name)


def path_of(text: str) -> str:
    """A name from the form as the settings take it: what lies on Drive is a path, never a name on the Hub.

    Raises:
        CaiError: it is on Drive, and Drive was not mounted; or there is no Drive on this machine.
    """
    text = text.strip()
    on_drive = _DRIVE_TEXT.match(text)
    if on_drive is None:
        return text
    if not in_colab():
        raise CaiError(
            f"{text} names a folder of Google Drive, and this machine has none.", "Give a folder that is here."
        )
    return str(mount_drive() / text[on_drive.end() :])


def in_colab() -> bool:
    return importlib.util.find_spec("google") is not None and importlib.util.find_spec("google.colab") is not None


def mount_drive() -> Path:
    """Google Drive's folder. Asks for permission the first time.

    Raises:
        CaiError: the permission was not given.
    """
    from google.colab import drive, errors

    mount = CONTENT / "drive"
    try:
        drive.mount(str(mount))
    except (errors.Error, ValueError) as error:
        raise CaiError(
            f"Google Drive was not mounted: {error}",
            'Allow it in the window that opens, or choose keep = "none" in the form: then results are lost with the runtime.',
        ) from error
    return mount / "MyDrive"

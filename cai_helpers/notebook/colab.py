"""What the notebooks' first cells call, in Colab and elsewhere: open a run, change it, start it over, sign in, download."""

from __future__ import annotations

from pathlib import Path

from cai_helpers.notebook.places import in_colab, mount_drive
from cai_helpers.notebook.runs import Session, change, offer_start_over, open_run, resume, start_over
from cai_helpers.notebook.signing import sign_in

__all__ = [
    "Session",
    "change",
    "download",
    "in_colab",
    "mount_drive",
    "offer_start_over",
    "open_run",
    "resume",
    "sign_in",
    "start_over",
]


def download(path: Path) -> None:
    """Send a file to the browser in Colab; elsewhere say where it lies."""
    if in_colab():
        from google.colab import files

        files.download(str(path))
    else:
        print(f"It is here: {path}")
